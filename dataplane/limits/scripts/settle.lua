-- Replace what a reservation holds by what the request took, and forget it.
--
-- op: {SETTLE, key of the reservation, rid, tokens, cost}
-- Answers {OK}, or {GONE} when the reservation is unknown, settled or released: no change.
-- Requests stay counted. A reservation that was reaped has been charged in full:
-- only the difference in money moves.
operations[SETTLE] = function(op)
  local key, rid = KEYS[op[2]], op[3]
  local record = reservation_of(key)
  if not record then return {GONE} end
  local tokens = op[4]
  if record[RECORD_STATE] ~= HELD then tokens = nil end
  finish(record, rid, tokens, op[5], 1)
  call("DEL", key)
  call("ZREM", KEYS[LEASES_KEY], rid)
  return {OK}
end
