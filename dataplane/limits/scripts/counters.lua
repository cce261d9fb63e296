-- How each kind of counter is read, and how a reservation is taken out of it again.
--
-- Names in capitals are the constants of `counters.py`, `operations.py` and `script.py`
-- (lifetimes, codes), which stand here as values when the script runs. Before this text stands
-- `clock.lua`. Numbers are integers up to 2^53 and become text only through `int`: Lua's own
-- conversion writes 1e+15.
--
-- A rolling counter is a hash of slot number -> count, SLOTS slots to a window.
-- Requests in slot s were made before (s + 1) * slot_ms, so a slot that is counted
-- in full until (s + SLOTS + 1) * slot_ms outlives the window of each of them:
-- no window of the full length, wherever it begins, sees more than the capacity.
--
-- A rate is the theoretical arrival time of its next request if all came at its pace (GCRA), in
-- microseconds of limiter time. It may be ahead of now by as much as a burst takes.
--
-- A budget is a hash of s (settled), h (held) and a: the highest percentage that was told.
local call = redis.call
local floor, ceil, max = math.floor, math.ceil, math.max

local function int(number)
  return string.format("%d", number)
end

local server_now = server_clock_ms()
local batch = cmsgpack.unpack(ARGV[BATCH_ARGUMENT])
local plans, mark_count = batch[2], batch[3]
-- Marks of revocations are the last keys: hardly ever there, and all read at once.
local known = call("MGET", KEYS[CLOCK_KEY], KEYS[EPOCH_KEY], unpack(KEYS, #KEYS - mark_count + 1))
local is_marked = false
for i = 3, mark_count + 2 do
  is_marked = is_marked or known[i]
end
-- A step back of the server's clock freezes the limiter's time until it catches up.
local now = max(server_now, tonumber(known[1] or "0"))
local counter_epoch = known[2]

-- Returns what a rolling counter holds, its fields, those no longer counted (or
-- nil), and whether the current slot has a field. Writes nothing.
local function read_rolling(key, slot_ms)
  local current = floor(now / slot_ms)
  local fields = call("HGETALL", key)
  local used, expired, is_fresh = 0, nil, true
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    -- Slots to come are left over from before the clock was reset.
    if slot >= current - SLOTS and slot <= current then
      used = used + tonumber(fields[i + 1])
      if slot == current then is_fresh = false end
    else
      expired = expired or {}
      expired[#expired + 1] = fields[i]
    end
  end
  return used, fields, expired, is_fresh
end

-- Milliseconds until slots worth at least `missing` have left the window.
local function rolling_wait_ms(fields, slot_ms, missing)
  local current = floor(now / slot_ms)
  local counts = {}
  for i = 1, #fields, 2 do
    counts[tonumber(fields[i])] = tonumber(fields[i + 1])
  end
  for slot = current - SLOTS, current do
    missing = missing - (counts[slot] or 0)
    if missing <= 0 then return (slot + SLOTS + 1) * slot_ms - now end
  end
  return (current + SLOTS + 1) * slot_ms - now
end

-- Microseconds by which a rate is ahead of now. More than its burst takes is left over from
-- before the clock was reset, or from a larger burst: as if one request could come now, which
-- puts it right.
local function ahead_us(key, interval_us, most_us)
  local ahead = max(tonumber(call("GET", key) or "0") - now * 1000, 0)
  if ahead > most_us then return max(most_us - interval_us, 0) end
  return ahead
end

-- Adds to an integer that exists. One that is gone has outlived its period; written
-- again, it would be a counter that never expires.
local function move(key, ends_ms, difference)
  if difference == 0 then return end
  local count = call("INCRBY", key, int(difference))
  if count == difference and ends_ms ~= FOREVER_MS and call("PTTL", key) == -1 then
    call("DEL", key)
  end
end

local function move_slot(key, slot, ends_ms, difference)
  if difference == 0 or now >= ends_ms then return end
  if call("HINCRBY", key, int(slot), int(difference)) ~= difference then return end
  -- It was 0 or not there.
  if call("PTTL", key) == -1 then
    call("DEL", key)
  elseif difference < 0 then
    call("HDEL", key, int(slot))
  end
end

-- Adds to `crossings` what a budget has come to: 80 and 100 percent of settled and held, each
-- told once in the counter's life. A capacity of 0 tells nothing, a negative one is a shadow's.
local function tell(key, settled, held, told, capacity, crossings)
  local used = settled + held
  if capacity < 0 then capacity = -capacity end
  if capacity == 0 or used < capacity - floor(capacity / 5) then return end
  told = tonumber(told or "0")
  if told < 80 then
    crossings[#crossings + 1] = {key, 80, capacity, settled, held}
    call("HSET", key, "a", "80")
  end
  if told < 100 and used >= capacity then
    crossings[#crossings + 1] = {key, 100, capacity, settled, held}
    call("HSET", key, "a", "100")
  end
end

-- `crossings` is nil where nobody would hear of them.
local function move_spend(key, settled, held, capacity, crossings)
  local balance = call("HMGET", key, "s", "h", "a")
  if balance[2] then
    settled = tonumber(balance[1] or "0") + settled
    held = tonumber(balance[2]) + held
    call("HSET", key, "s", int(settled), "h", int(held))
    if crossings then tell(key, settled, held, balance[3], capacity, crossings) end
  end
end

-- How many slots of a parallel set are taken: those whose lease runs, or ran out a while ago without
-- anybody having reaped their request.
local function slots_taken(key)
  return call("ZCOUNT", key, "(" .. int(now - SLOT_GRACE_MS), "+inf")
end

-- Keeps a parallel set for as long as slots that are taken now may count.
local function keep_slots(key)
  call("PEXPIRE", key, int(2 * (LEASE_MS + SLOT_GRACE_MS)))
end

-- The record of a reservation, or nil when it is unknown, gone or released.
local function reservation_of(key)
  local packed = call("GET", key)
  if not packed or packed == TOMBSTONE then return nil end
  return cmsgpack.unpack(packed)
end

-- Moves every counter of a reservation from what it reserved to what it became.
--
-- `tokens`, `cost` and `requests` are the final amounts; nil tokens or cost stand
-- for the reserved ones. Counters move in the slot or period in which the
-- reservation was made. Of a reservation that was reaped only the difference to
-- what the reaper charged is left to move. One of another counter epoch is in no
-- counter of this one: only its parallel slots are freed.
local function finish(record, rid, tokens, cost, requests, crossings)
  local counters, was_held = record[RECORD_COUNTERS], record[RECORD_STATE] == HELD
  local is_counted = record[RECORD_EPOCH] == counter_epoch
  for i = 1, #counters, COUNTER_FIELDS do
    local code, key, amount, ends = counters[i], counters[i + 1], counters[i + 2], counters[i + 4]
    if code == PARALLEL then
      if was_held then call("ZREM", key, rid) end
    elseif not is_counted then
      -- Rebuilt without it.
    elseif code == ROLLING_TOKENS then
      move_slot(key, counters[i + 3], ends, (tokens or amount) - amount)
    elseif code == PERIOD_REQUESTS then
      move(key, ends, requests - amount)
    elseif code == PERIOD_TOKENS then
      move(key, ends, (tokens or amount) - amount)
    else
      local charged = cost or amount
      if was_held then
        move_spend(key, charged, -amount, counters[i + 3], crossings)
      else
        move_spend(key, charged - amount, 0, counters[i + 3], crossings)
      end
    end
  end
  return is_counted
end

local operations = {}
