-- A call of the general kind, as an expression: f the server's own function, a the command, b and the rest its arguments. Part of both preludes.
-- M, p, T: see prelude.lua.
function(f,a,b,...)
  local P,S,n,F,G=<PREFIX>,string.sub,select('#',...)+1,string.find,string.match
  if T(a)~='string' then
    if b==nil and n==1 then
      if a==nil then return f() end
      return f(a)
    end
    return f(a,b,...)
  end
  local Z=<TABLE>
  local function spec(w)
    local _,e=F(Z,'\n'..string.lower(w)..'=',1,true)
    return e and G(Z,'^[^\n]*',e+1) or '-'
  end
  local c=M[a]
  if not c then
    c=spec(a)
    if c=='1' then c=1 end
    M[a]=c
  end
  if c=='c' then c=T(b)=='string' and spec(a..'|'..b) or '-' end
  if c=='-' or T(c)=='table' then
    <UNKNOWN>
    c='0'
  end
  if c=='0' then
    if b==nil and n==1 then return f(a) end
    return f(a,b,...)
  end
  local function key(v)
    local y=T(v)
    if y=='string' then return P..v end
    -- The server knows how it writes a number.
    if y=='number' then return P..p('PING',v) end
    return v
  end
  if c==1 then return f(a,key(b),...) end
  local t,q,flags={b,...},{},G(c,'^%l*')
  local function mark(i)
    if i<=n then
      t[i]=key(t[i])
      q[#q+1]=t[i]
    end
  end
  local function all(i) for j=i,n do mark(j) end end
  local function base(i)
    local d=tonumber(t[i])
    if d and d>=0 and d<<DATABASES> then t[i]=d+<BASE> elseif d then t[i]=2147483647 end
  end
  for o,x,y,z in string.gmatch(c,'(%u)(%d)(%d)(%d)') do
    x,y,z=x+0,y+0,z+0
    if o=='F' then for i=x,y,z do mark(i) end
    elseif o=='R' then for i=x,n-y,z do mark(i) end
    elseif o=='D' then base(x)
    elseif o=='N' then
      if x>0 then mark(x) end
      local v=t[y]
      local d=(T(v)=='number' or T(v)=='string' and G(v,'^%d+$')) and tonumber(v)
      if d and d>=1 and d==math.floor(d) and y+d*z<=n then
        for i=y+1,y+d*z,z do mark(i) end
      else all(y+1) end
    else
      local i=x
      while i<=n do
        local w=T(t[i])=='string' and string.lower(t[i]) or '='
        local _,e=F(c,' '..w..'=',1,true)
        local g=e and S(c,e+1,e+1) or 'a'
        if g=='s' and (n-i)%2==0 then
          for j=i+1,i+(n-i)/2 do mark(j) end
          break
        elseif g=='a' or g=='s' then all(i) break
        elseif g=='k' or g=='g' and t[i+1]~='#' then mark(i+1)
        elseif g=='d' then base(i+1) end
        i=i+1+(tonumber(g) or 1)
      end
    end
  end
  local r=f(a,unpack(t,1,n))
  if T(r)=='table' then
    local function strip(v)
      if T(v)=='string' and S(v,1,<LEN>)==P then return S(v,<AFTER>) end
      return v
    end
    if r.err then
      if F(flags,'g') then
        for _,v in ipairs(q) do
          local i,j=F(r.err,"'"..v.."'",1,true)
          if i then r.err=S(r.err,1,i)..strip(v)..S(r.err,j) break end
        end
      end
    elseif F(flags,'k') then r[1]=strip(r[1])
    elseif F(flags,'x') then
      if r.map then
        local m={}
        for k,v in pairs(r.map) do m[strip(k)]=v end
        r.map=m
      else
        for _,v in ipairs(r) do v[1]=strip(v[1]) end
      end
    end
  end
  return r
end
