-- What stands before every script: `redis` as the tenant sees it. Made into one line, so that the script's own lines keep their numbers.
-- Upper case words in angle brackets are filled in per script; see prelude.rs. No line holds a comment after code.
-- A: from a name in KEYS to the name upstream.  M: from a command word to where its names stand; its [1] is the function for all that is not
-- common.  p: the server's own redis.pcall.  Every local that a function uses costs an allocation per run, so there are few.
local <NAMES>=redis do
local R,K,S,A=redis,KEYS,string.sub,{}
local T,p=type,R.pcall
for i=1,#K do
  local k=K[i]
  local u=S(k,<AFTER>)
  K[i]=u
  A[u]=k
end
local M={__index=R,__newindex=R<SEEDS>}
<CJSON>
-- redis.pcall
local function f(a,b,...)
  local k=A[b]
  if k and M[a]==1 then return p(a,k,...) end
  -- All the rest, made when it is first needed.
  M[1]=M[1] or <CALLS>
  return M[1](p,a,b,...)
end
<NAME>=setmetatable({pcall=f,call=function(a,b,...)
  local k,r=A[b]
  if k and M[a]==1 then r=p(a,k,...) else r=f(a,b,...) end
  if T(r)=='table' and r.err then
    -- The server says on which line an error was raised; that is here. On which it was called is said by error() to whoever asks it.
    local _,w=pcall(error,'',3)
    w=string.match(w,'user_script:(%d+)') or <TAIL>
    return error(setmetatable(r,{__newindex=function(t,k,v) rawset(t,k,k=='line' and v==<LINE> and w or v) end}))
  end
  return r
end<ACL>},M)
<ALIAS>
end
