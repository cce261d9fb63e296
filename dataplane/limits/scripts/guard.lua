-- Count a call with every guard, or with none when one of them does not let it through.
--
-- KEYS[1]      the limiter's clock
-- KEYS[i + 1]  theoretical arrival time of check i, in milliseconds of limiter time
-- ARGV[1]      the caller's counter epoch, which does not matter here: guards of an emptied
--              server begin with a whole burst
-- ARGV[2i]     burst of check i
-- ARGV[2i + 1] emission interval of check i, in milliseconds
--
-- All keys are distinct and carry one hash tag. Returns, packed, {0, 0} when all let it through;
-- otherwise {i, milliseconds until check i lets one through} for the check that takes longest, of
-- equals the first, with nothing counted. A script of its own: before this text stands `clock.lua`.
-- Numbers become text only through `int`: Lua's own conversion writes 1e+15.
local call = redis.call

local function int(number)
  return string.format("%d", number)
end

local server_now = server_clock_ms()
-- A step back of the server's clock freezes the limiter's time until it catches up.
local now = math.max(server_now, tonumber(call("GET", KEYS[1]) or "0"))
-- The first write, so that a server that refuses writes refuses before anything is counted.
call("SET", KEYS[1], int(now))

local arrivals, binding, longest = {}, 0, 0
for i = 1, #KEYS - 1 do
  local burst, interval = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local arrival = math.max(tonumber(call("GET", KEYS[i + 1]) or "0"), now) + interval
  local wait = arrival - burst * interval - now
  if wait > longest then
    binding, longest = i, wait
  end
  arrivals[i] = arrival
end
if binding > 0 then
  return cmsgpack.pack({binding, longest})
end

for i, arrival in ipairs(arrivals) do
  -- What lies in the past says nothing any more. Keys end by the server's clock, which may be
  -- behind: counted from there, a key outlives its instant.
  call("SET", KEYS[i + 1], int(arrival), "PX", int(arrival - server_now))
end
return cmsgpack.pack({0, 0})
