-- What stands before the code of every library: `redis` as the tenant sees it. Made into one line, so that the library's own lines keep their
-- numbers. See library.rs for the words in angle brackets. While a library loads, it finds nothing but `redis` in its environment, without
-- `call`: no `type`, no `pcall`, no `error`. So what is wrong is told by what Lua or the server says of it, and put in the server's words
-- by keyfence (errors.rs); names of locals are chosen for that.
-- G: the server's own `redis` at the moment.  R: that of the load.  X: the tenant's.  M: as for scripts; metatable of X once a function runs.
-- N, B: functions registered, and the bytes of their names and descriptions.  D: fails with what is no function.
local <NAMES>=function() return redis end do
local G,N,B,D,p,S,T=redis,0,0,('').dump
local R,X=G(),{}
local M={__index=R<SEEDS>}
-- redis.pcall
local function f(a,b,...)
  if M[a]==1 and T(b)=='string' then return p(a,<PREFIX>..b,...) end
  M[1]=M[1] or <CALLS>
  return M[1](p,a,b,...)
end
-- The first call of a function.
local function start()
  local R=G()
  p,S,T=R.pcall,string.sub,type
  M.__index,M.__newindex=R,R
  X.register_function=nil
  X.pcall=f
  X.call=function(a,b,...)
    local r
    if M[a]==1 and T(b)=='string' then r=p(a,<PREFIX>..b,...) else r=f(a,b,...) end
    if T(r)=='table' and r.err then
      local _,w=pcall(error,'',3)
      w=string.match(w,'user_function:(%d+)') or <TAIL>
      return error(setmetatable(r,{__newindex=function(t,k,v) rawset(t,k,k=='line' and v==<LINE> and w or v) end}))
    end
    return r
  end
  <ACL>
  setmetatable(X,M)
end
local function wrap(c)
  return function(k,a)
    if not p then start() end
    <CJSON>
    for i=1,#k do k[i]=S(k[i],<AFTER>) end
    return c(k,a)
  end
end
local function count(name)
  N,B=N+1,B+#name
  if N><MOST> or B><BYTES> then R.too_many_functions() end
end
X.register_function=function(function_name,callback,more)
  -- Neither form: the server says so.
  if more~=nil or function_name==nil and callback==nil then return R.register_function(function_name,callback,1) end
  if callback~=nil then
    local name=<TAG>..function_name
    if function_name=='' then name='' end
    count(name)
    local second=D
    if second then second(callback) end
    return R.register_function(name,wrap(callback))
  end
  local named=function_name.function_name
  local t,callback,description=function_name,function_name.callback,function_name.description
  if named==nil or named=='' or callback==nil then return R.register_function(t) end
  count(<TAG>..named)
  if description~=nil then count(''..description) N=N-1 end
  local callback_argument=D
  if callback_argument then callback_argument(callback) end
  t.function_name,t.callback=<TAG>..named,wrap(callback)
  R.register_function(t)
  t.function_name,t.callback=named,callback
end
X.log=R.log
X.LOG_DEBUG,X.LOG_VERBOSE,X.LOG_NOTICE,X.LOG_WARNING=R.LOG_DEBUG,R.LOG_VERBOSE,R.LOG_NOTICE,R.LOG_WARNING
X.REDIS_VERSION,X.REDIS_VERSION_NUM=R.REDIS_VERSION,R.REDIS_VERSION_NUM
redis=X
<ALIAS>
end
