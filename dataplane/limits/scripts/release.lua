-- Give back everything a request reserved, except its rates and rolling request counts.
--
-- op: {RELEASE, key of the reservation, rid}
-- Answers {OK}, or {GONE} when there was nothing to give back in this counter epoch. Either way
-- a tombstone keeps an admit that is still under way from taking effect after this release.
operations[RELEASE] = function(op)
  local key, rid = KEYS[op[2]], op[3]
  local record, is_counted = reservation_of(key), false
  if record then
    is_counted = finish(record, rid, 0, 0, 0)
    call("ZREM", KEYS[record[RECORD_STATE] == HELD and LEASES_KEY or REAPED_KEY], rid)
  end
  call("SET", key, TOMBSTONE, "PX", int(TOMBSTONE_MS))
  return {is_counted and OK or GONE}
end
