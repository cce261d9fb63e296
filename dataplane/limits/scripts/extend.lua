-- Raise what the soft budgets of a request hold, all of them or none.
--
-- op: {EXTEND, key of the reservation, what each shall hold, caller or 0}
-- Answers {OK}, also when they hold that much already; {DENY} when one has no room for the
-- difference: nothing changed; {GONE} when the request is not held in this counter epoch;
-- {REVOKED, …}, see `mark.lua`, when streams of its caller are to end.
operations[EXTEND] = function(op)
  local key, wanted = KEYS[op[2]], op[3]
  local record = reservation_of(key)
  if not record or record[RECORD_STATE] ~= HELD or record[RECORD_EPOCH] ~= counter_epoch then
    return {GONE}
  end
  local revoked = is_marked and operations.revoked(op[4])
  if revoked and revoked[5] == 1 then return revoked end
  local counters, raised = record[RECORD_COUNTERS], {}
  for i = 1, #counters, COUNTER_FIELDS do
    if counters[i] == SOFT_SPEND and counters[i + 2] < wanted then
      local capacity = counters[i + 3]
      local balance = call("HMGET", counters[i + 1], "s", "h")
      local used = tonumber(balance[1] or "0") + tonumber(balance[2] or "0")
      -- Only shadow budgets have a capacity of 0 or less here: they refuse nothing.
      if capacity > 0 and used + wanted - counters[i + 2] > capacity then return {DENY} end
      -- One that is gone has outlived its period.
      if balance[2] then raised[#raised + 1] = i end
    end
  end
  for _, i in ipairs(raised) do
    call("HINCRBY", counters[i + 1], "h", int(wanted - counters[i + 2]))
    counters[i + 2] = wanted
  end
  if #raised > 0 then call("SET", key, cmsgpack.pack(record), "KEEPTTL") end
  return {OK}
end
