"""What Redis does with orders: the rules of `accounts`, for all routers at once. Knows nothing of connections.

One account is one hash: `u` used in all, `b` what was known to be used when the account had been lost, `e` its epoch, `s:<second>` used in
that second of a sliding window, `r:<router>` = held:reported:until_ms:lost; all up to `reported` is in `u` or `b`. A router that is not
heard of until `until_ms` is dead: what it held counts as used, for nobody knows whether it was, and is taken back should it return; slots
at the same time are free again.

Each answer says what every router had reported by then, and routers bring it back: an account that was lost is made anew of what the first
of them brings, and each of the others adds what it alone knows of. So nothing counts twice, not even a report whose answer was lost too.
"""

LIFE_MS = 15_000
"""A router that holds something says so more often than this."""
FORGET_MS = 86_400_000
"""A dead router's line goes after so long."""

EXCHANGE = """
local now = tonumber(ARGV[1])
if now < 0 then local t = redis.call('TIME'); now = t[1] * 1000 + math.floor(t[2] / 1000) end
local router = 'r:' .. ARGV[2]
local second = math.floor(now / 1000)
local function text(n) return string.format('%.0f', n) end
local out = {}
for i, key in ipairs(KEYS) do
  local at = 2 + (i - 1) * 12
  local window, limit = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local total, acked, known, epoch = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), ARGV[at + 6]
  local need, want, least = tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8]), tonumber(ARGV[at + 9])
  local life_ms, dead_after, reports = tonumber(ARGV[at + 10]), tonumber(ARGV[at + 11]), ARGV[at + 12]
  local all = redis.call('HGETALL', key)
  local u, b, e, held, slots, sum, mine = 0, 0, nil, 0, {}, 0, nil
  local gone, set, lines = {}, {}, {}
  local lost_now = 0
  for j = 1, #all, 2 do
    local f, v = all[j], all[j + 1]
    local kind = string.sub(f, 1, 1)
    if kind == 'u' then u = tonumber(v)
    elseif kind == 'b' then b = tonumber(v)
    elseif kind == 'e' then e = v
    elseif kind == 's' then
      local s = tonumber(string.sub(f, 3))
      if (s + window + 1) * 1000 <= now then gone[#gone + 1] = f
      else slots[#slots + 1] = {s, tonumber(v)}; sum = sum + tonumber(v) end
    else
      local h, rep, til, lost = string.match(v, '^(%-?%d+):(%d+):(%d+):(%d+)$')
      h, rep, til, lost = tonumber(h), tonumber(rep), tonumber(til), tonumber(lost)
      lines[f] = {h, rep, til, lost}
      if f == router then mine = {rep, lost}
      elseif til >= now then held = held + h
      elseif h > 0 then
        if window >= 0 then lost_now = lost_now + h; lost = lost + h end
        lines[f] = {0, rep, til, lost}
        set[#set + 1] = f; set[#set + 1] = '0:' .. text(rep) .. ':' .. text(til) .. ':' .. text(lost)
      elseif til + dead_after < now then gone[#gone + 1] = f; lines[f] = nil end
    end
  end
  local is_new = e == nil
  if is_new then
    local t = redis.call('TIME')
    e = t[1] .. '.' .. t[2]
    set[#set + 1] = 'e'; set[#set + 1] = e
  end
  local base = acked
  if epoch ~= '' and epoch ~= e and window == 0 and reports ~= '' then
    if is_new then b = known; set[#set + 1] = 'b'; set[#set + 1] = text(b) end
    for id, told in string.gmatch(reports, '([^ =]+)=(%d+)') do
      local f, rep = 'r:' .. id, tonumber(told)
      local line = lines[f] or {0, is_new and rep or 0, now, 0}
      if rep > line[2] then u = u + rep - line[2]; line[2] = rep end
      if f == router then mine = {line[2], line[4]}
      else
        set[#set + 1] = f; set[#set + 1] = text(line[1]) .. ':' .. text(line[2]) .. ':' .. text(line[3]) .. ':' .. text(line[4])
      end
      lines[f] = line
    end
    if mine then base = mine[1] end
  elseif epoch ~= '' and epoch ~= e then
    if mine == nil then
      if window == 0 then b = math.max(b, known); set[#set + 1] = 'b'; set[#set + 1] = text(b)
      elseif window > 0 then lost_now = lost_now + math.max(0, known - sum) end
    else base = mine[1] end
  elseif mine then base = mine[1] end
  local delta = math.max(0, total - base) + lost_now
  if mine and window == 0 then delta = delta - mine[2] end
  local used = 0
  if window == 0 then
    u = u + delta; used = b + u
    set[#set + 1] = 'u'; set[#set + 1] = text(u)
  elseif window > 0 then
    used = sum + delta
    if delta > 0 then
      local there = 0
      for _, slot in ipairs(slots) do if slot[1] == second then there = slot[2]; slot[2] = slot[2] + delta end end
      if there == 0 then slots[#slots + 1] = {second, delta} end
      set[#set + 1] = 's:' .. text(second); set[#set + 1] = text(there + delta)
    end
  end
  local extra, wait = 0, 0
  if limit < 0 then extra = want
  elseif want > 0 then
    local free = limit - used - held - need
    if free >= math.max(least, 1) then extra = math.min(want, free)
    else
      wait = 1000
      local missing = least - free
      table.sort(slots, function(x, y) return x[1] < y[1] end)
      for _, slot in ipairs(slots) do
        missing = missing - slot[2]
        if missing <= 0 then wait = math.max(1, (slot[1] + window + 1) * 1000 - now); break end
      end
    end
  end
  set[#set + 1] = router
  set[#set + 1] = text(need + extra) .. ':' .. text(total) .. ':' .. text(now + dead_after_life) .. ':0'
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  redis.call('HSET', key, unpack(set))
  if life_ms > 0 then redis.call('PEXPIRE', key, life_ms) end
  local told = {}
  if window == 0 then
    lines[router] = {0, total}
    for f, line in pairs(lines) do told[#told + 1] = string.sub(f, 3) .. '=' .. text(line[2]) end
  end
  out[#out + 1] = {text(extra), text(used), text(held), text(wait), e, table.concat(told, ' ')}
end
return out
""".replace("dead_after_life", str(LIFE_MS))
