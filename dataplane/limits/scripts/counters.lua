-- How each kind of counter is read, and how a reservation is taken out of it again.
--
-- Before this text stand the constants of `counters.py` and `operations.py` (lifetimes,
-- codes) and `clock.lua`. Numbers are integers up to 2^53 and become text only
-- through `int`: Lua's own conversion writes 1e+15.
--
-- A rolling counter is a hash of slot number -> count, SLOTS slots to a window.
-- Requests in slot s were made before (s + 1) * slot_ms, so a slot that is counted
-- in full until (s + SLOTS + 1) * slot_ms outlives the window of each of them:
-- no window of the full length, wherever it begins, sees more than the capacity.
local call = redis.call
local floor = math.floor

local function int(number)
  return string.format("%d", number)
end

local server_now = server_clock_ms()
-- A step back of the server's clock freezes the limiter's time until it catches up.
local now = math.max(server_now, tonumber(call("GET", KEYS[CLOCK_KEY]) or "0"))
local counter_epoch = call("GET", KEYS[EPOCH_KEY])
local batch = cmsgpack.unpack(ARGV[BATCH_ARGUMENT])
local plans = batch[2]

-- Returns what a rolling counter holds, its fields, those no longer counted (or
-- nil), and whether the current slot has a field. Writes nothing.
local function read_rolling(key, slot_ms)
  local current = floor(now / slot_ms)
  local fields = call("HGETALL", key)
  local used, expired, is_fresh = 0, nil, true
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if slot >= current - SLOTS then
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

-- Adds to an integer that exists. One that is gone has outlived its window or
-- period; writing it again would make a counter that never expires.
local function move(key, difference)
  if difference ~= 0 and call("EXISTS", key) == 1 then
    call("INCRBY", key, int(difference))
  end
end

local function move_slot(key, slot, ends_ms, difference)
  if difference == 0 or now >= ends_ms then return end
  if call("HEXISTS", key, int(slot)) == 1 then
    call("HINCRBY", key, int(slot), int(difference))
  end
end

local function move_spend(key, settled, held)
  local balance = call("HMGET", key, "s", "h")
  if balance[2] then
    call("HSET", key,
      "s", int(tonumber(balance[1] or "0") + settled),
      "h", int(tonumber(balance[2]) + held))
  end
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
-- what the reaper charged is left to move.
local function finish(record, rid, tokens, cost, requests)
  local counters, was_held = record[RECORD_COUNTERS], record[RECORD_STATE] == HELD
  local i = 1
  while i <= #counters do
    local code, key, amount = counters[i], counters[i + 1], counters[i + 2]
    i = i + 3
    if code == ROLLING_TOKENS then
      move_slot(key, counters[i], counters[i + 1], (tokens or amount) - amount)
      i = i + 2
    elseif code == PERIOD_REQUESTS then
      move(key, requests - amount)
    elseif code == PERIOD_TOKENS then
      move(key, (tokens or amount) - amount)
    elseif code == SPEND then
      local charged = cost or amount
      if was_held then
        move_spend(key, charged, -amount)
      else
        move_spend(key, charged - amount, 0)
      end
    elseif was_held then
      call("ZREM", key, rid)
    end
  end
end

local operations = {}
