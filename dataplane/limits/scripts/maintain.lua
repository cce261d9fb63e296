-- The lease of the node that maintains the counters, and what only that node does.
--
-- The lease is a hash of owner and fence that expires by itself; the fence is the number of the
-- lease, and the newest one has a key of its own that does not expire.

-- op: {MAINTAIN, key of the lease, key of the fence, node, lease in ms}
-- Answers {OK, fence}, or {TAKEN, owner}.
operations[MAINTAIN] = function(op)
  local lease, fence_key, node = KEYS[op[2]], KEYS[op[3]], op[4]
  local holder = call("HMGET", lease, "owner", "fence")
  if holder[1] and holder[1] ~= node then return {TAKEN, holder[1]} end
  local fence = tonumber(holder[2] or "0")
  if not holder[1] then
    -- Never below the clock: a server that lost its data must not give an old number again.
    fence = max(tonumber(call("GET", fence_key) or "0") + 1, server_now)
    call("SET", fence_key, int(fence))
    call("HSET", lease, "owner", node, "fence", int(fence))
  end
  call("PEXPIRE", lease, int(op[5]))
  return {OK, fence}
end

-- op: {RESIGN, key of the lease, node}
-- Answers {OK}, or {GONE} when it is not the node's.
operations[RESIGN] = function(op)
  if call("HGET", KEYS[op[2]], "owner") ~= op[3] then return {GONE} end
  call("DEL", KEYS[op[2]])
  return {OK}
end

-- Sets how long a counter of a period is kept; one whose time is over is gone at once.
local function keep_until(key, ends_ms)
  if ends_ms ~= FOREVER_MS then
    call("PEXPIRE", key, int(ends_ms - now + PERIOD_GRACE_MS))
  end
end

-- Sets a budget that was `balance`, {s, h, a}; `crossings` as in `tell`.
local function set_budget(key, balance, settled, held, ends_ms, capacity, crossings)
  call("HSET", key, "s", int(settled), "h", int(held))
  tell(key, settled, held, balance[3], capacity, crossings)
  if not (balance[1] or balance[2]) then keep_until(key, ends_ms) end
end

-- Sets a count that was `count`, false where there was none.
local function set_count(key, count, after, ends_ms)
  if count then
    call("SET", key, int(after), "KEEPTTL")
  else
    call("SET", key, int(after))
    keep_until(key, ends_ms)
  end
end

-- op: {CORRECT, key, code, settled before, settled, held before, held, ends_ms, capacity, key of
--   the fence, fence}
-- Answers {OK, crossings}, {MOVED} when the counter is not what it was before, or {FENCED}.
-- A counter that does not exist reads as 0 and is made, unless its time is over.
operations[CORRECT] = function(op)
  local key, code, before, after, ends_ms = KEYS[op[2]], op[3], op[4], op[5], op[8]
  if is_fenced(op[10], op[11]) then return {FENCED} end
  local crossings = {}
  if code == SPEND or code == SOFT_SPEND then
    local balance = call("HMGET", key, "s", "h", "a")
    if tonumber(balance[1] or "0") ~= before or tonumber(balance[2] or "0") ~= op[6] then
      return {MOVED}
    end
    set_budget(key, balance, after, op[7], ends_ms, op[9], crossings)
  else
    local count = call("GET", key)
    if tonumber(count or "0") ~= before then return {MOVED} end
    set_count(key, count, after, ends_ms)
  end
  return {OK, crossings}
end

-- op: {RAISE, key, code, settled, 1 if what it holds makes up for what it lacks (else 0), ends_ms,
--   capacity, key of the fence, fence}
-- Answers {OK, crossings}, {MOVED} when there is nothing to raise (any more), or {FENCED}.
-- Whatever the counter is by now, it is not lowered; and what it holds is left.
operations[RAISE] = function(op)
  local key, code, wanted, ends_ms = KEYS[op[2]], op[3], op[4], op[6]
  if is_fenced(op[8], op[9]) then return {FENCED} end
  local crossings = {}
  if code == SPEND or code == SOFT_SPEND then
    local balance = call("HMGET", key, "s", "h", "a")
    local held = tonumber(balance[2] or "0")
    local made_up = op[5] == 1 and max(held, 0) or 0
    if tonumber(balance[1] or "0") + made_up >= wanted then return {MOVED} end
    set_budget(key, balance, wanted, held, ends_ms, op[7], crossings)
  else
    local count = call("GET", key)
    if tonumber(count or "0") >= wanted then return {MOVED} end
    set_count(key, count, wanted, ends_ms)
  end
  return {OK, crossings}
end

-- op: {RESTORE, key of the reservation, rid, counters, argument of the meta, admitted at, epoch,
--   key of the fence, fence}
-- Answers {OK}; {DUPLICATE} when it is in this epoch already; {RELEASED} when it was given back
-- meanwhile; {FENCED}. Counters are as in a record; they count what it holds from now on.
operations[RESTORE] = function(op)
  local reservation, rid, given, epoch = KEYS[op[2]], op[3], op[4], op[7]
  if is_fenced(op[8], op[9]) then return {FENCED} end
  local earlier = call("GET", reservation)
  if earlier == TOMBSTONE then return {RELEASED} end
  if earlier and cmsgpack.unpack(earlier)[RECORD_EPOCH] == epoch then return {DUPLICATE} end
  local counters, lease_ends = {}, int(now + LEASE_MS)
  for i = 1, #given, COUNTER_FIELDS do
    local code, key, amount, ends_ms = given[i], given[i + 1], given[i + 2], given[i + 4]
    local is_kept = true
    if code == PARALLEL then
      call("ZADD", key, lease_ends, rid)
      keep_slots(key)
    elseif code == ROLLING_TOKENS or now >= ends_ms + PERIOD_GRACE_MS then
      -- Windows start empty: a settle must not take from one what is not in it.
      is_kept = false
    else
      if code == SPEND or code == SOFT_SPEND then
        call("HINCRBY", key, "h", int(amount))
      else
        call("INCRBY", key, int(amount))
      end
      keep_until(key, ends_ms)
    end
    if is_kept then
      for field = i, i + COUNTER_FIELDS - 1 do
        counters[#counters + 1] = given[field]
      end
    end
  end
  local record = {HELD, epoch, op[6], 0, cmsgpack.pack({}), counters, ARGV[op[5]]}
  call("SET", reservation, cmsgpack.pack(record))
  call("ZADD", KEYS[LEASES_KEY], lease_ends, rid)
  call("ZREM", KEYS[REAPED_KEY], rid)
  return {OK}
end

-- op: {OPEN_EPOCH, epoch, key of the fence, fence}
-- Answers {OK} or {FENCED}. Operations later in the batch are of the new epoch.
operations[OPEN_EPOCH] = function(op)
  if is_fenced(op[3], op[4]) then return {FENCED} end
  call("SET", KEYS[EPOCH_KEY], op[2])
  counter_epoch = op[2]
  return {OK}
end

-- op: {RESET_CLOCK, key of the fence, fence}
-- Answers {OK} or {FENCED}. The next call goes by the new time. Leases that were renewed in the
-- time that is taken back would run for as long as the clock was ahead.
operations[RESET_CLOCK] = function(op)
  if is_fenced(op[2], op[3]) then return {FENCED} end
  call("SET", KEYS[CLOCK_KEY], int(server_now))
  local latest = int(server_now + LEASE_MS)
  for _, rid in ipairs(call("ZRANGEBYSCORE", KEYS[LEASES_KEY], "(" .. latest, "+inf")) do
    call("ZADD", KEYS[LEASES_KEY], latest, rid)
  end
  return {OK}
end
