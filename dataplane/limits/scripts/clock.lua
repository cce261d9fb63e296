-- The server's clock, in Unix milliseconds. Nothing else in the script asks for the time.
local function server_clock_ms()
  local time = redis.call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
