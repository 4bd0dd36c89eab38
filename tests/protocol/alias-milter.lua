-- alias-milter with OpenDKIM's miltertest program, the harness mail people know:
--   miltertest -s tests/protocol/alias-milter.lua -D socket=unix:/run/alias-milter/milter.sock
-- Needs the rules:  HSET domain:example.com unknown reject
--                   HSET alias:example.com bob bob@example.com sales bob@example.com out me@gmail.example

local function connected()
  local conn = mt.connect(socket)
  if conn == nil then error("cannot connect to " .. socket) end
  if mt.conninfo(conn, "client.example", "192.0.2.10") ~= nil then error("conninfo failed") end
  if mt.mailfrom(conn, "<alice@bank.example>") ~= nil then error("mailfrom failed") end
  return conn
end

-- An unknown address is refused at RCPT.
local conn = connected()
if mt.rcptto(conn, "<nobody@example.com>") ~= nil then error("rcptto failed") end
if mt.getreply(conn) ~= SMFIR_REPLYCODE then error("an unknown address was not refused") end
mt.disconnect(conn)

-- An alias is rewritten, and its sender stays.
local function finish(conn)
  if mt.header(conn, "From", "alice@bank.example") ~= nil then error("header failed") end
  if mt.eom(conn) ~= nil then error("eom failed") end
end
conn = connected()
if mt.rcptto(conn, "<sales@example.com>") ~= nil then error("rcptto failed") end
if mt.getreply(conn) ~= SMFIR_CONTINUE then error("an alias was refused") end
finish(conn)
if not mt.eom_check(conn, MT_RCPTDELETE, "<sales@example.com>") then error("alias not deleted") end
if not mt.eom_check(conn, MT_RCPTADD, "<bob@example.com>") then error("mailbox not added") end
if not mt.eom_check(conn, MT_HDRINSERT, "X-Alias-Milter-Trace") then error("no trace header") end
mt.disconnect(conn)

-- A mailbox is left alone.
conn = connected()
if mt.rcptto(conn, "<bob@example.com>") ~= nil then error("rcptto failed") end
finish(conn)
if mt.eom_check(conn, MT_RCPTDELETE, "<bob@example.com>") then error("a mailbox was rewritten") end
mt.disconnect(conn)
mt.echo("alias-milter: all as it should be")
