-- Charge reservations whose owner died, and list them until their record is in the ledger.

-- Tells whether somebody else has taken the maintenance lease since the caller got its number.
local function is_fenced(fence_key, fence)
  return fence ~= NO_FENCE and tonumber(call("GET", KEYS[fence_key]) or "0") ~= fence
end

-- op: {REAP, key of the reservation, rid, charged or -1, key of the fence, fence}
-- Every budget is charged what it holds, or `charged`. Answers {OK, crossings}, also for one of
-- another counter epoch, which moves no counter; {DUPLICATE} when it was reaped before; {GONE}
-- when there is none; {FENCED}; {MOVED} to the reaper when the owner's lease has been renewed.
-- The record stays for a while, so that a true figure that comes late can correct it.
operations[REAP] = function(op)
  local key, rid, charged, fence = KEYS[op[2]], op[3], op[4], op[6]
  if is_fenced(op[5], fence) then return {FENCED} end
  local lease = call("ZSCORE", KEYS[LEASES_KEY], rid)
  if fence ~= NO_FENCE and lease and tonumber(lease) > now then return {MOVED} end
  local record = reservation_of(key)
  if lease and not (record and record[RECORD_STATE] == HELD) then
    call("ZREM", KEYS[LEASES_KEY], rid)
  end
  if not record then return {GONE} end
  if record[RECORD_STATE] ~= HELD then return {DUPLICATE} end
  local crossings, counters = {}, record[RECORD_COUNTERS]
  if charged < 0 then charged = nil end
  finish(record, rid, nil, charged, 1, crossings)
  for i = 1, #counters, COUNTER_FIELDS do
    -- A late settle corrects what was charged, not what was held.
    if charged and (counters[i] == SPEND or counters[i] == SOFT_SPEND) then
      counters[i + 2] = charged
    end
  end
  record[RECORD_STATE] = REAPED
  call("SET", key, cmsgpack.pack(record), "PX", int(UNREPORTED_MS))
  call("ZREM", KEYS[LEASES_KEY], rid)
  call("ZADD", KEYS[REAPED_KEY], int(now), rid)
  return {OK, crossings}
end

-- op: {OVERDUE, limit}
-- Answers {OK, now, {rid, …}}: leases that have run out, oldest first.
operations[OVERDUE] = function(op)
  local rids = call(
    "ZRANGEBYSCORE", KEYS[LEASES_KEY], "-inf", int(now), "LIMIT", "0", int(op[2]))
  return {OK, now, rids}
end

-- op: {UNREPORTED, limit}
-- Answers {OK, now, {rid, …}}: reaped and not yet forgotten, oldest first.
operations[UNREPORTED] = function(op)
  local rids = call(
    "ZRANGEBYSCORE", KEYS[REAPED_KEY], "-inf", "+inf", "LIMIT", "0", int(op[2]))
  return {OK, now, rids}
end

-- op: {FORGET, key of the reservation, rid}
-- Answers {OK}, or {GONE} when it is not listed. Whatever is listed has the record of a reaped
-- reservation, if any: its late settle, its release and its rebuilding take it off the list.
operations[FORGET] = function(op)
  if call("ZREM", KEYS[REAPED_KEY], op[3]) == 0 then return {GONE} end
  call("PEXPIRE", KEYS[op[2]], int(REAPED_MS))
  return {OK}
end
