-- Revocations, told to nodes that have not heard of them.
--
-- A mark is the text "<revision> <1: its streams end too, else 0> <config epoch>", highest first by
-- epoch, then by revision. A caller is {config epoch, revision, mark, mark, mark}: the configuration
-- that it was authenticated by, and the numbers of its marks; the first one is its credential's.

-- By bytes: Lua's own comparison goes by the language of the server.
local function is_before(text, other)
  for i = 1, max(#text, #other) do
    local mine, theirs = string.byte(text, i) or -1, string.byte(other, i) or -1
    if mine ~= theirs then return mine < theirs end
  end
  return false
end

-- Returns revision, end of streams, epoch; nil for what is no mark.
local function read_mark(text)
  local revision, ends_streams, epoch = string.match(text or "", "^(%d+) ([01]) (.*)$")
  return tonumber(revision), tonumber(ends_streams), epoch
end

-- Read only where a caller has a mark.
local callers

-- Returns {REVOKED, which of the caller's marks, epoch, revision, 1 if its streams end too (else 0)}
-- for the first mark that overrules its configuration, or false.
operations.revoked = function(caller_number)
  if caller_number == 0 then return false end
  callers = callers or cmsgpack.unpack(ARGV[CALLERS_ARGUMENT])
  local caller = callers[caller_number]
  for place = 1, #caller - 2 do
    local revision, ends_streams, epoch = read_mark(known[2 + caller[2 + place]])
    if revision then
      local is_overruled = revision > caller[2]
      if epoch ~= caller[1] then
        -- A credential never comes back; users and organizations may, with an older database.
        is_overruled = place == CREDENTIAL_PLACE or is_before(caller[1], epoch)
      end
      if is_overruled then return {REVOKED, place, epoch, revision, ends_streams} end
    end
  end
  return false
end

-- op: {MARK, {key, epoch, revision, 1 if its streams end too (else 0), …}}
-- Answers {OK}. A mark is never lowered; operations later in the batch see it.
operations[MARK] = function(op)
  local marked = op[2]
  for i = 1, #marked, MARK_FIELDS do
    local key, epoch, revision = KEYS[marked[i]], marked[i + 1], marked[i + 2]
    -- Whatever else may stand there is no mark.
    local earlier, _, earlier_epoch = read_mark(call("MGET", key)[1])
    if not earlier or is_before(earlier_epoch, epoch)
      or (earlier_epoch == epoch and earlier < revision) then
      local text = int(revision) .. " " .. int(marked[i + 3]) .. " " .. epoch
      call("SET", key, text, "PX", int(MARK_MS))
    end
  end
  local again = call("MGET", KEYS[CLOCK_KEY], unpack(KEYS, #KEYS - mark_count + 1))
  for i = 1, mark_count do
    known[2 + i] = again[1 + i]
    is_marked = is_marked or again[1 + i]
  end
  return {OK}
end
