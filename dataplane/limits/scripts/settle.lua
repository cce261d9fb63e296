-- Replace what a reservation holds by what the request took, and forget it.
--
-- op: {SETTLE, key of the reservation, rid, tokens, cost}
-- Answers {OK, crossings}, or {GONE} when the reservation is unknown, settled, released or of
-- another counter epoch: no counter moves. Requests stay counted. Of a reservation that was
-- reaped, which has been charged in full, the difference to that moves.
-- crossings: {{key, percent, capacity, settled, held}, …}, see `tell`.
operations[SETTLE] = function(op)
  local key, rid = KEYS[op[2]], op[3]
  local record = reservation_of(key)
  if not record then return {GONE} end
  local crossings = {}
  local is_counted = finish(record, rid, op[4], op[5], 1, crossings)
  call("DEL", key)
  -- One that was reaped is reported by its owner now.
  call("ZREM", KEYS[record[RECORD_STATE] == HELD and LEASES_KEY or REAPED_KEY], rid)
  if not is_counted then return {GONE} end
  return {OK, crossings}
end
