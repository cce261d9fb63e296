-- Undo an admission as if it had never been asked for: another part of the request was refused.
--
-- op: {CANCEL, key of the reservation, rid, plan, base, admitted at}
-- Answers {OK}, or {GONE} when that admission is not held in this counter epoch. Other than a
-- release it gives back rolling request counts, and rates where that is exact: nobody came since, or
-- the rate was ahead of now before this admission, so that each of those who came would have moved it
-- by one interval without it too. It leaves no tombstone: the same request may be asked for again,
-- which is another admission.
operations[CANCEL] = function(op)
  local reservation, rid, plan, base, admitted = KEYS[op[2]], op[3], plans[op[4]], op[5], op[6]
  local record = reservation_of(reservation)
  if not record or record[RECORD_STATE] ~= HELD or record[RECORD_ADMITTED] ~= admitted then
    return {GONE}
  end
  local is_counted = finish(record, rid, 0, 0, 0)
  call("DEL", reservation)
  call("ZREM", KEYS[LEASES_KEY], rid)
  -- One that a rebuild restored has no pairs, and is in no window and no rate.
  local pairs_of, i = cmsgpack.unpack(record[RECORD_PAIRS]), 0
  if not is_counted or #pairs_of == 0 then return {is_counted and OK or GONE} end
  for at = 1, #plan, LAYER_FIELDS do
    i = i + 1
    local code, key, p1 = plan[at], KEYS[base + plan[at + 1]], plan[at + 4]
    if code == ROLLING_REQUESTS then
      local slot = floor(admitted / p1)
      move_slot(key, slot, (slot + SLOTS + 1) * p1, -1)
    elseif code == RATE and plan[at + 3] == 0 then
      local arrival, mine = tonumber(call("GET", key) or "0"), admitted + pairs_of[2 * i]
      local is_last = p1 >= 1000 and ceil(arrival / 1000) == mine
      local ahead = arrival - p1 - now * 1000
      if is_last and ahead <= 0 then
        call("DEL", key)
      elseif is_last or (mine - 1) * 1000 - p1 >= now * 1000 then
        local lifetime = ceil(ahead / 1000) + now - server_now
        call("SET", key, int(now * 1000 + ahead), "PX", int(lifetime))
      end
    end
  end
  return {OK}
end
