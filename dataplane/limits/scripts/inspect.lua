-- Read without writing: the counters of a reservation, or the balances of a plan.
--
-- op: {FIND, key of the reservation}
-- Answers {OK, HELD | REAPED | LOST, {key, …}, meta, {key, held, …}}: the counters that it was admitted
-- to, and what it holds of budgets, or {GONE}. One of another counter epoch is lost: it is in none of
-- the counters of this one. Only what is held holds something.
operations[FIND] = function(op)
  local record = reservation_of(KEYS[op[2]])
  if not record then return {GONE} end
  local counters, keys, holds = record[RECORD_COUNTERS], {}, {}
  local state = record[RECORD_EPOCH] == counter_epoch and record[RECORD_STATE] or LOST
  for i = 1, #counters, COUNTER_FIELDS do
    keys[#keys + 1] = counters[i + 1]
    if state == HELD and (counters[i] == SPEND or counters[i] == SOFT_SPEND) then
      holds[#holds + 1] = counters[i + 1]
      holds[#holds + 1] = counters[i + 2]
    end
  end
  return {OK, state, keys, record[RECORD_META], holds}
end

-- Limiter time at which the last slot that has counted something leaves the window.
local function rolling_end_ms(fields, slot_ms)
  local newest, current = 0, floor(now / slot_ms)
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if tonumber(fields[i + 1]) > 0 and slot <= current then newest = max(newest, slot) end
  end
  return (newest + SLOTS + 1) * slot_ms
end

-- op: {BALANCE, plan, base}
-- Answers {OK, now, nexts, {settled, held, …}, {resets at, …}} per layer, {STALE} or {COLD}. For layers
-- that are not money `held` is 0; a parallel layer's `settled` is the slots that are taken, a
-- rate's is how many of its burst could not come now.
-- `resets at` is the limiter time at which all of the layer is back, 0 where time gives nothing back.
operations[BALANCE] = function(op)
  if counter_epoch ~= ARGV[EPOCH_ARGUMENT] then return {COLD} end
  local plan, base, balances, resets, nexts, i = plans[op[2]], op[3], {}, {}, 0, 0
  for at = 1, #plan, LAYER_FIELDS do
    i = i + 1
    local code, key, p1, settled, held = plan[at], KEYS[base + plan[at + 1]], plan[at + 4], 0, 0
    local resets_at, fields = 0, nil
    if code == PARALLEL then
      settled = slots_taken(key)
    elseif code == RATE then
      local ahead = ahead_us(key, p1, plan[at + 5])
      settled = ceil(ahead / p1)
      if ahead > 0 then resets_at = now + ceil(ahead / 1000) end
    elseif code == ROLLING_REQUESTS or code == ROLLING_TOKENS then
      settled, fields = read_rolling(key, p1)
      if settled > 0 then resets_at = rolling_end_ms(fields, p1) end
    else
      if now < p1 or now >= plan[at + 6] then return {STALE} end
      resets_at = plan[at + 5]
      if now >= resets_at then
        key, nexts, resets_at = KEYS[base + plan[at + 1] + 1], nexts + 2 ^ (i - 1), plan[at + 6]
      end
      if resets_at == FOREVER_MS then resets_at = 0 end
      if code == PERIOD_REQUESTS or code == PERIOD_TOKENS then
        settled = tonumber(call("GET", key) or "0")
      else
        local balance = call("HMGET", key, "s", "h")
        settled, held = tonumber(balance[1] or "0"), tonumber(balance[2] or "0")
      end
    end
    balances[2 * i - 1], balances[2 * i], resets[i] = settled, held, resets_at
  end
  return {OK, now, nexts, balances, resets}
end
