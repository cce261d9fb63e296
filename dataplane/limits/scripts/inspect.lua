-- Read without writing: the counters of a reservation, or the balances of a plan.
--
-- op: {FIND, key of the reservation}
-- Answers {OK, {key, …}}, the counters that a settle of it would move, or {GONE}.
operations[FIND] = function(op)
  local record = reservation_of(KEYS[op[2]])
  if not record then return {GONE} end
  local counters, keys, i = record[RECORD_COUNTERS], {}, 1
  while i <= #counters do
    keys[#keys + 1] = counters[i + 1]
    i = i + (counters[i] == ROLLING_TOKENS and 5 or 3)
  end
  return {OK, keys}
end

-- Limiter time at which the last slot that has counted something leaves the window.
local function rolling_end_ms(fields, slot_ms)
  local newest = 0
  for i = 1, #fields, 2 do
    if tonumber(fields[i + 1]) > 0 then newest = math.max(newest, tonumber(fields[i])) end
  end
  return (newest + SLOTS + 1) * slot_ms
end

-- op: {BALANCE, plan, base}
-- Answers {OK, now, nexts, {settled, held, …}, {resets at, …}} per layer, or {STALE}. For layers
-- that are not money `held` is 0; a parallel layer's `settled` is the slots whose lease runs.
-- `resets at` is the limiter time at which all of the layer is back, 0 where time gives nothing back.
operations[BALANCE] = function(op)
  local plan, base, balances, resets, nexts = plans[op[2]], op[3], {}, {}, 0
  for i = 1, #plan do
    local layer = plan[i]
    local code, key, settled, held = layer[1], KEYS[base + layer[2]], 0, 0
    local resets_at, fields = 0, nil
    if code == PARALLEL then
      settled = call("ZCOUNT", key, "(" .. int(now), "+inf")
    elseif code == ROLLING_REQUESTS or code == ROLLING_TOKENS then
      settled, fields = read_rolling(key, layer[5])
      if settled > 0 then resets_at = rolling_end_ms(fields, layer[5]) end
    else
      if now < layer[5] or now >= layer[7] then return {STALE} end
      resets_at = layer[6]
      if now >= resets_at then
        key, nexts, resets_at = KEYS[base + layer[2] + 1], nexts + 2 ^ (i - 1), layer[7]
      end
      if resets_at == FOREVER_MS then resets_at = 0 end
      if code == SPEND then
        local balance = call("HMGET", key, "s", "h")
        settled, held = tonumber(balance[1] or "0"), tonumber(balance[2] or "0")
      else
        settled = tonumber(call("GET", key) or "0")
      end
    end
    balances[2 * i - 1], balances[2 * i], resets[i] = settled, held, resets_at
  end
  return {OK, now, nexts, balances, resets}
end
