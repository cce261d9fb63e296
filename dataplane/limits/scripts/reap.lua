-- Charge a reservation whose owner died at what it reserved.
--
-- op: {REAP, key of the reservation, rid}
-- Answers {OK}; {DUPLICATE} when it was reaped before; {GONE} when there is none.
-- The record stays for a while, so that a true figure that comes late can correct it.
operations[REAP] = function(op)
  local key, rid = KEYS[op[2]], op[3]
  local record = reservation_of(key)
  if not record then return {GONE} end
  if record[RECORD_STATE] ~= HELD then return {DUPLICATE} end
  finish(record, rid, nil, nil, 1)
  record[RECORD_STATE] = REAPED
  call("SET", key, cmsgpack.pack(record), "PX", int(REAPED_MS))
  call("ZREM", KEYS[LEASES_KEY], rid)
  return {OK}
end
