"""The scripts of a place of records: a string for each record, an index and a marker for each slot.

Each changes one slot alone, so all its keys lie on one server. Names of records are put together from the beginning of
the slot's names and a member of its index.
"""

from __future__ import annotations

from typing import Final

from datalayer.stores.redis.scripts import Script

APPLY: Final = Script("""
-- KEYS: record, index, marker. ARGV: cell, version, when to drop it (ms), member of the index
if redis.call('EXISTS', KEYS[3]) == 0 then return redis.error_reply('STALE no such place') end
local stored = redis.call('GET', KEYS[1])
if stored then
  local mine, its = ARGV[2], string.match(stored, '^%[(%-?%d+),')
  local newer
  if mine == its then
    -- equal versions: the greater bytes win, everywhere; not by the locale's order, which Lua's < goes by
    local a, b = ARGV[1], stored
    local at, least = 1, math.min(#a, #b)
    while at <= least and string.byte(a, at) == string.byte(b, at) do at = at + 1 end
    if at > least then newer = #a > #b else newer = string.byte(a, at) > string.byte(b, at) end
  else
    local below, its_below = string.sub(mine, 1, 1) == '-', string.sub(its, 1, 1) == '-'
    if below ~= its_below then newer = its_below
    elseif #mine ~= #its then newer = (#mine > #its) ~= below
    else newer = (mine > its) ~= below end
  end
  if not newer then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[3])
if not stored then redis.call('ZADD', KEYS[2], 0, ARGV[4]) end
return 1""")

PAGE: Final = Script("""
-- KEYS: index, marker. ARGV: beginning of names, start of the range of members, end, how many
if redis.call('EXISTS', KEYS[2]) == 0 then return redis.error_reply('STALE no such place') end
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])
local cells = {}
for number, member in ipairs(members) do cells[number] = redis.call('GET', ARGV[1] .. member) end
return {members, cells}""")

DROP: Final = Script("""
-- KEYS: index. ARGV: beginning of names, how many; whether some are left
local members = redis.call('ZRANGE', KEYS[1], 0, ARGV[2] - 1)
for _, member in ipairs(members) do redis.call('UNLINK', ARGV[1] .. member) end
if #members > 0 then redis.call('ZREM', KEYS[1], unpack(members)) end
return redis.call('EXISTS', KEYS[1])""")

PURGE: Final = Script("""
-- KEYS: index. ARGV: beginning of names, start of the range of members, how many; (looked at, taken out, the last one)
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], '+', 'LIMIT', 0, ARGV[3])
local taken = 0
for _, member in ipairs(members) do
  if redis.call('EXISTS', ARGV[1] .. member) == 0 then
    redis.call('ZREM', KEYS[1], member)
    taken = taken + 1
  end
end
return {#members, taken, members[#members] or ''}""")
