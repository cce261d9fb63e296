-- Renew the lease of a reservation and of its parallel slots.
--
-- op: {HEARTBEAT, key of the reservation, rid, {keys of its parallel sets}}
-- Answers {OK}, or {GONE} when the reservation is no longer held, or not in this counter epoch.
-- A slot is renewed however late, unless it has not been taken any more: then it may have been given
-- away, and is not taken back.
operations[HEARTBEAT] = function(op)
  local rid = op[3]
  if not call("ZSCORE", KEYS[LEASES_KEY], rid) then return {GONE} end
  local record = reservation_of(KEYS[op[2]])
  if not record or record[RECORD_EPOCH] ~= counter_epoch then return {GONE} end
  local expiry = int(now + LEASE_MS)
  for _, index in ipairs(op[4]) do
    local key = KEYS[index]
    call("ZREMRANGEBYSCORE", key, "-inf", int(now - SLOT_GRACE_MS))
    call("ZADD", key, "XX", expiry, rid)
    keep_slots(key)
  end
  call("ZADD", KEYS[LEASES_KEY], "XX", expiry, rid)
  return {OK}
end
