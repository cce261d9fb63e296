-- Give back everything a request reserved, except its rolling request counts.
--
-- op: {RELEASE, key of the reservation, rid}
-- Answers {OK}, or {GONE} when there was nothing to give back. Either way a tombstone
-- keeps an admit that is still under way from taking effect after this release.
operations[RELEASE] = function(op)
  local key, rid = KEYS[op[2]], op[3]
  local record = reservation_of(key)
  if record then
    finish(record, rid, 0, 0, 0)
    call("ZREM", KEYS[LEASES_KEY], rid)
  end
  call("SET", key, TOMBSTONE, "PX", int(TOMBSTONE_MS))
  return {record and OK or GONE}
end
