-- Reserve a request's demand from every layer of its plan, or from none.
--
-- op: {ADMIT, key of the reservation, rid, plan, base, tokens, cost, not_after_ms, argument of
--   the meta}
-- plan: {{code, offset of its key, capacity, is_shadow, p1, p2, p3}, …}, keys counted from `base`
--   rolling   p1 = slot in ms
--   calendar  p1, p2, p3 = start, end, end of the next period; the next one's key follows its own
--   parallel  -
--
-- Answers {OK | DUPLICATE, now, nexts, pairs}: per layer what remains and its reset in ms;
-- bit i-1 of `nexts` says that layer i fell into its next period.
-- {DENY, now, nexts, pairs, binding, is_never, settled, held}: the first short layer.
-- {EXPIRED}, {COLD}, {RELEASED}, {STALE}: nothing was read further and nothing done.
-- Until the last layer has been found to have room, only expired members of
-- parallel sets are written.
local function is_calendar(code)
  return code == PERIOD_REQUESTS or code == PERIOD_TOKENS or code == SPEND
end

operations[ADMIT] = function(op)
  -- By the server's own clock: a limiter time that stands still would let an admit
  -- through that waited in a paused server after its caller had left.
  if server_now > op[8] then return {EXPIRED} end
  if counter_epoch ~= ARGV[EPOCH_ARGUMENT] then return {COLD} end
  local reservation, rid = KEYS[op[2]], op[3]
  local earlier = call("GET", reservation)
  if earlier == TOMBSTONE then return {RELEASED} end
  if earlier then
    local record = cmsgpack.unpack(earlier)
    return {DUPLICATE, record[RECORD_ADMITTED], record[RECORD_NEXTS], record[RECORD_PAIRS]}
  end

  local plan, base, tokens, cost = plans[op[4]], op[5], op[6], op[7]
  local pairs_of, chosen, is_fresh, expired = {}, {}, {}, {}
  local nexts, binding, never, settled, held = 0, 0, 0, 0, 0

  for i = 1, #plan do
    local layer = plan[i]
    local code, key, capacity, shadow = layer[1], KEYS[base + layer[2]], layer[3], layer[4]
    local amount, used, spent, reset, fields = 1, 0, 0, 0, nil
    if code == ROLLING_TOKENS or code == PERIOD_TOKENS then
      amount = tokens
    elseif code == SPEND then
      amount = cost
    end

    if is_calendar(code) then
      if now < layer[5] or now >= layer[7] then return {STALE} end
      local ends = layer[6]
      if now >= ends then
        key, ends = KEYS[base + layer[2] + 1], layer[7]
        nexts = nexts + 2 ^ (i - 1)
      end
      if code == SPEND then
        local balance = call("HMGET", key, "s", "h")
        is_fresh[i] = not balance[2]
        spent = tonumber(balance[1] or "0")
        used = spent + tonumber(balance[2] or "0")
      else
        local count = call("GET", key)
        is_fresh[i] = not count
        used = tonumber(count or "0")
      end
      reset = ends == FOREVER_MS and NEVER or ends - now
    elseif code == PARALLEL then
      call("ZREMRANGEBYSCORE", key, "-inf", int(now))
      used = call("ZCARD", key)
    else
      used, fields, expired[i], is_fresh[i] = read_rolling(key, layer[5])
      reset = (floor(now / layer[5]) + SLOTS + 1) * layer[5] - now
    end
    chosen[i] = key

    local remaining = capacity - used
    if amount > remaining or capacity == 0 then
      if fields and amount <= capacity then
        reset = rolling_wait_ms(fields, layer[5], amount - remaining)
      end
      if shadow == 0 and binding == 0 then
        binding, never = i, (amount > capacity or capacity == 0) and 1 or 0
        settled, held = spent, code == SPEND and used - spent or 0
      end
    end
    pairs_of[2 * i - 1], pairs_of[2 * i] = math.max(remaining, 0), reset
  end
  if binding > 0 then
    return {DENY, now, nexts, pairs_of, binding, never, settled, held}
  end

  local counters = {}
  for i = 1, #plan do
    local layer, key = plan[i], chosen[i]
    local code, amount, slot = layer[1], 1, nil
    if code == PARALLEL then
      call("ZADD", key, int(now + LEASE_MS), rid)
      call("PEXPIRE", key, int(2 * LEASE_MS))
    elseif is_calendar(code) then
      if code == SPEND then
        amount = cost
        call("HINCRBY", key, "h", int(amount))
      else
        if code == PERIOD_TOKENS then amount = tokens end
        call("INCRBY", key, int(amount))
      end
      local ends = key == KEYS[base + layer[2]] and layer[6] or layer[7]
      if is_fresh[i] and ends ~= FOREVER_MS then
        call("PEXPIRE", key, int(ends - now + PERIOD_GRACE_MS))
      end
    else
      if code == ROLLING_TOKENS then amount = tokens end
      slot = floor(now / layer[5])
      call("HINCRBY", key, int(slot), int(amount))
      if is_fresh[i] then
        if expired[i] then call("HDEL", key, unpack(expired[i])) end
        call("PEXPIRE", key, int((SLOTS + 2) * layer[5]))
      end
    end
    pairs_of[2 * i - 1] = math.max(pairs_of[2 * i - 1] - amount, 0)
    -- Rolling request counters are never given back, so nothing remembers them.
    if code ~= ROLLING_REQUESTS then
      local n = #counters
      counters[n + 1], counters[n + 2], counters[n + 3] = code, key, amount
      if slot then
        counters[n + 4], counters[n + 5] = slot, (slot + SLOTS + 1) * layer[5]
      end
    end
  end
  local record = {HELD, counter_epoch, now, nexts, pairs_of, counters, ARGV[op[9]]}
  call("SET", reservation, cmsgpack.pack(record), "PX", int(RESERVATION_MS))
  call("ZADD", KEYS[LEASES_KEY], int(now + LEASE_MS), rid)
  return {OK, now, nexts, pairs_of}
end
