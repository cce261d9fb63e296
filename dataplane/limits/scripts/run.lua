-- Run a batch of operations, each of them whole and in the order given.
--
-- KEYS  clock, epoch, leases, reaped, then whatever the operations name by index; one hash tag
--       the last ones are the marks of those who ask
-- ARGV  the caller's counter epoch; {operations, plans, number of marks} packed; who asks, packed:
--       see `mark.lua`; then the metas of admits and restored requests
--
-- Returns, packed, {server clock in ms, limiter time in ms, {answer, …}}. An operation that
-- meets a key of a foreign type answers {FAULT, text} and does not disturb the others.

-- The first write of every call, so that a server that refuses writes (out of memory,
-- demoted) refuses before any operation has begun.
call("SET", KEYS[CLOCK_KEY], int(now))

if is_marked then define_rare_operations() end
local answers = {}
for i, op in ipairs(batch[1]) do
  if not operations[op[1]] then define_rare_operations() end
  local is_whole, answer = pcall(operations[op[1]], op)
  if not is_whole then
    answer = {FAULT, type(answer) == "table" and answer.err or tostring(answer)}
  end
  answers[i] = answer
end
return cmsgpack.pack({server_now, now, answers})
