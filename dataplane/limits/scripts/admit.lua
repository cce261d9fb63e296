-- Reserve a request's demand from every layer of its plan, or from none.
--
-- op: {ADMIT, key of the reservation, rid, plan, base, tokens, cost, not_after_ms, argument of
--   the meta, expected cost, caller or 0}
-- plan: LAYER_FIELDS values for each layer: code, offset of its key, capacity, is_shadow, p1, p2,
--   p3; keys are counted from `base`
--   rate      p1 = emission interval, p2 = how far it may be ahead, in microseconds
--   rolling   p1 = slot in ms
--   calendar  p1, p2, p3 = start, end, end of the next period; the next one's key follows its own
--   parallel  -
--
-- Answers {OK | DUPLICATE, now, nexts, pairs}: per layer what remains and its reset in ms;
-- bit i-1 of `nexts` says that layer i fell into its next period.
-- {DENY, now, nexts, pairs, binding, is_never, settled, held}: the first short layer.
-- {REVOKED, …}: see `mark.lua`. Whatever was admitted before is not asked for it again.
-- {EXPIRED}, {COLD}, {RELEASED}, {STALE}: nothing was read further and nothing done.
-- Until the last layer has been found to have room, nothing is written.
--
-- Shadow layers count what they would have refused, but rates: a rate that lets nothing through
-- does not move, so a shadow one shows what it would do if it were none.
operations[ADMIT] = function(op)
  -- By the server's own clock: a limiter time that stands still would let an admit
  -- through that waited in a paused server after its caller had left.
  if server_now > op[8] then return {EXPIRED} end
  local revoked = is_marked and operations.revoked(op[11])
  -- Of lost counters, too: their caller may be let in without them.
  if counter_epoch ~= ARGV[EPOCH_ARGUMENT] then return revoked or {COLD} end
  local reservation, rid = KEYS[op[2]], op[3]
  local earlier = call("GET", reservation)
  if earlier == TOMBSTONE then return {RELEASED} end
  if earlier then
    local record = cmsgpack.unpack(earlier)
    -- One of another counter epoch is in no counter of this one.
    if record[RECORD_EPOCH] == counter_epoch then
      local pairs_of = cmsgpack.unpack(record[RECORD_PAIRS])
      return {DUPLICATE, record[RECORD_ADMITTED], record[RECORD_NEXTS], pairs_of}
    end
  end
  if revoked then return revoked end

  local plan, base, tokens, hard, soft = plans[op[4]], op[5], op[6], op[7], op[10]
  local pairs_of, chosen, ends_of, is_fresh, expired = {}, {}, {}, {}, {}
  local nexts, binding, never, settled, held = 0, 0, 0, 0, 0
  local i = 0

  for at = 1, #plan, LAYER_FIELDS do
    i = i + 1
    local code, key, capacity, p1 = plan[at], KEYS[base + plan[at + 1]], plan[at + 2], plan[at + 4]
    local amount, remaining, spent, reserved, reset, fields = 1, 0, 0, 0, 0, nil
    if code == ROLLING_REQUESTS or code == ROLLING_TOKENS then
      if code == ROLLING_TOKENS then amount = tokens end
      local used
      used, fields, expired[i], is_fresh[i] = read_rolling(key, p1)
      remaining = capacity - used
      reset = (floor(now / p1) + SLOTS + 1) * p1 - now
    elseif code == PARALLEL then
      remaining = capacity - slots_taken(key)
    elseif code == RATE then
      local most = plan[at + 5]
      local ahead = ahead_us(key, p1, most)
      remaining = capacity > 0 and floor((most - ahead) / p1) or 0
      if capacity == 0 then
        reset = NEVER
      elseif remaining < 1 then
        reset = ceil((ahead + p1 - most) / 1000)
      else
        reset = ceil(ahead / 1000)
      end
      ends_of[i] = ahead
    else
      local ends = plan[at + 5]
      if now < p1 or now >= plan[at + 6] then return {STALE} end
      if now >= ends then
        key, ends = KEYS[base + plan[at + 1] + 1], plan[at + 6]
        nexts = nexts + 2 ^ (i - 1)
      end
      if code == PERIOD_REQUESTS or code == PERIOD_TOKENS then
        if code == PERIOD_TOKENS then amount = tokens end
        local count = call("GET", key)
        is_fresh[i] = not count
        remaining = capacity - tonumber(count or "0")
      else
        amount = code == SPEND and hard or soft
        local balance = call("HMGET", key, "s", "h")
        is_fresh[i] = not balance[2]
        spent, reserved = tonumber(balance[1] or "0"), tonumber(balance[2] or "0")
        remaining = capacity - (spent + reserved)
      end
      reset = ends == FOREVER_MS and NEVER or ends - now
      ends_of[i] = ends
    end
    chosen[i] = key

    if amount > remaining or capacity == 0 then
      if fields and amount <= capacity then
        reset = rolling_wait_ms(fields, p1, amount - remaining)
      end
      if plan[at + 3] == 0 and binding == 0 then
        binding, never = i, (amount > capacity or capacity == 0) and 1 or 0
        settled, held = spent, reserved
      end
    end
    pairs_of[2 * i - 1], pairs_of[2 * i] = max(remaining, 0), reset
  end
  if binding > 0 then
    return {DENY, now, nexts, pairs_of, binding, never, settled, held}
  end

  local counters, n, lease_ends = {}, 0, int(now + LEASE_MS)
  i = 0
  for at = 1, #plan, LAYER_FIELDS do
    i = i + 1
    local code, key, amount, detail, ends = plan[at], chosen[i], 1, 0, ends_of[i]
    if code == ROLLING_REQUESTS or code == ROLLING_TOKENS then
      if code == ROLLING_TOKENS then amount = tokens end
      local slot_ms = plan[at + 4]
      detail = floor(now / slot_ms)
      call("HINCRBY", key, int(detail), int(amount))
      if is_fresh[i] then
        if expired[i] then call("HDEL", key, unpack(expired[i])) end
        call("PEXPIRE", key, int((SLOTS + 2) * slot_ms))
      end
      ends = (detail + SLOTS + 1) * slot_ms
    elseif code == PARALLEL then
      call("ZADD", key, lease_ends, rid)
      -- Reading how long the set is kept costs half of what it costs to say so each time.
      if call("PTTL", key) < LEASE_MS + SLOT_GRACE_MS then keep_slots(key) end
      ends = 0
    elseif code == RATE then
      if pairs_of[2 * i - 1] > 0 then
        local ahead = ends + plan[at + 4]
        -- Keys end by the server's clock, which may be behind: counted from there, a key
        -- outlives its instant. What lies in the past says nothing any more.
        local lifetime = ceil(ahead / 1000) + now - server_now
        call("SET", key, int(now * 1000 + ahead), "PX", int(lifetime))
        pairs_of[2 * i] = ceil(ahead / 1000)
      end
    else
      if code == PERIOD_REQUESTS or code == PERIOD_TOKENS then
        if code == PERIOD_TOKENS then amount = tokens end
        call("INCRBY", key, int(amount))
      else
        amount = code == SPEND and hard or soft
        detail = plan[at + 3] == 0 and plan[at + 2] or -plan[at + 2]
        call("HINCRBY", key, "h", int(amount))
      end
      if is_fresh[i] and ends ~= FOREVER_MS then
        call("PEXPIRE", key, int(ends - now + PERIOD_GRACE_MS))
      end
    end
    pairs_of[2 * i - 1] = max(pairs_of[2 * i - 1] - amount, 0)
    -- Rates and rolling request counters are never given back, so nothing remembers them.
    if code ~= ROLLING_REQUESTS and code ~= RATE then
      counters[n + 1], counters[n + 2], counters[n + 3] = code, key, amount
      counters[n + 4], counters[n + 5] = detail, ends
      n = n + COUNTER_FIELDS
    end
  end
  -- The pairs are packed apart: only a repetition reads them.
  local record =
    {HELD, counter_epoch, now, nexts, cmsgpack.pack(pairs_of), counters, ARGV[op[9]]}
  -- Without an end: whoever takes it off the leases ends it. One that expired before, while no node
  -- was there to reap it, would leave what it holds behind.
  call("SET", reservation, cmsgpack.pack(record))
  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)
  if earlier then call("ZREM", KEYS[REAPED_KEY], rid) end
  return {OK, now, nexts, pairs_of}
end
