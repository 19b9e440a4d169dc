/* The floor of what a proxy in front of Redis costs: clients' commands leave on one shared upstream connection, in one write for all
 * that arrived together, and what the upstream answers together leaves in one write per client. Framing on both sides, and nothing
 * else: no rewriting, no rules, no limits, no time-outs. A yardstick for benches/compare.py, not a proxy to use.
 *
 *     cc -O2 -o floor floor.c && ./floor LISTEN_PORT UPSTREAM_PORT        (both on 127.0.0.1)
 *
 * A peer that breaks the protocol ends its connection; when the upstream closes, so does the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 1024, CLIENT_READ = 64 << 10, UPSTREAM_READ = 256 << 10 };

struct bytes {
    char *at;
    size_t len, cap;
};

struct peer {
    int fd;
    struct bytes in;   /* received, not complete yet */
    size_t need;       /* a client's: `in` cannot be complete with fewer bytes than this */
    struct bytes out;  /* to be written, from `sent` on */
    size_t sent;
    size_t owed;       /* a client's: entries in `waiting` that point here */
    int dirty, blocked, closed;
};

/* Whose replies come next, and how many: a ring in the order the commands went upstream. */
struct waiter {
    struct peer *client;
    size_t replies;
};
static struct waiter *waiting;
static size_t first_waiter, waiters, waiting_cap;

static struct peer upstream, listener;
static struct peer **dirty;  /* clients with new replies in this turn */
static size_t dirty_len, dirty_cap;
static int poller;

static void *grown(void *at, size_t size) {
    at = realloc(at, size);
    if (!at) {
        perror("realloc");
        exit(1);
    }
    return at;
}

static void reserve(struct bytes *b, size_t more) {
    if (b->len + more > b->cap) {
        b->cap = b->cap * 2 > b->len + more ? b->cap * 2 : b->len + more;
        b->at = grown(b->at, b->cap);
    }
}

static void append(struct bytes *b, const char *from, size_t n) {
    reserve(b, n);
    memcpy(b->at + b->len, from, n);
    b->len += n;
}

static void watch(struct peer *p, int op, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = p};
    epoll_ctl(poller, op, p->fd, &event);
}

/* The number of a line such as "$12\r\n" whose first byte is `line`; `*end` is then behind the line, or NULL if it is not complete. */
static long header(const char *line, const char *limit, const char **end) {
    const char *p = line + 1;
    long n = 0, sign = 1;
    if (p < limit && *p == '-') sign = -1, p++;
    for (; p < limit && *p >= '0' && *p <= '9'; p++) n = n * 10 + (*p - '0');
    *end = limit - p >= 2 ? p + 2 : NULL;
    return sign * n;
}

/* Length of the first command; 0 when it is not complete, and then `*need` is what it takes at least; -1 when it is not a command. */
static ssize_t command(const char *from, size_t n, size_t *need) {
    const char *limit = from + n, *p = from;
    *need = n + 1;
    if (!n) return 0;
    if (*p != '*') return -1;
    long parts = header(p, limit, &p);
    while (p && parts-- > 0) {
        if (p >= limit) return 0;
        if (*p != '$') return -1;
        long size = header(p, limit, &p);
        if (!p) return 0;
        if (size < 0) return -1;
        if (limit - p < size + 2) {
            *need = (size_t)(p - from) + (size_t)size + 2;
            return 0;
        }
        p += size + 2;
    }
    return p ? p - from : 0;
}

/* How many complete commands `from` begins with; `*used` is their length. -1: not the protocol. */
static long commands(const char *from, size_t n, size_t *used, size_t *need) {
    long count = 0;
    ssize_t one;
    for (*used = 0; (one = command(from + *used, n - *used, need)) > 0; *used += (size_t)one) count++;
    return one < 0 ? -1 : count;
}

static void expect(struct peer *client, long replies) {
    if (!replies) return;
    if (waiters == waiting_cap) {
        struct waiter *wider = grown(NULL, (waiting_cap ? waiting_cap * 2 : 1024) * sizeof *wider);
        for (size_t i = 0; i < waiters; i++) wider[i] = waiting[(first_waiter + i) % waiting_cap];
        free(waiting);
        waiting = wider, first_waiter = 0, waiting_cap = waiting_cap ? waiting_cap * 2 : 1024;
    }
    waiting[(first_waiter + waiters++) % waiting_cap] = (struct waiter){client, (size_t)replies};
    client->owed++;
}

static void release(struct peer *client) {
    if (!client->closed || client->owed || client->dirty) return;
    free(client->in.at);
    free(client->out.at);
    free(client);
}

/* The replies it is still owed are dropped as they come. */
static void hang_up(struct peer *client) {
    if (!client->closed) close(client->fd);
    client->closed = 1;
    release(client);
}

static void client_readable(struct peer *client) {
    size_t used;
    long count;
    if (!client->in.len) {
        /* Straight to where it leaves from; only the beginning of a command that is not complete moves away again. */
        struct bytes *out = &upstream.out;
        reserve(out, CLIENT_READ);
        ssize_t n = read(client->fd, out->at + out->len, CLIENT_READ);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return hang_up(client);
        count = commands(out->at + out->len, (size_t)n, &used, &client->need);
        if (count < 0) return hang_up(client);
        if ((size_t)n > used) append(&client->in, out->at + out->len + used, (size_t)n - used);
        out->len += used;
    } else {
        struct bytes *in = &client->in;
        size_t room = client->need > in->len + CLIENT_READ ? client->need - in->len : CLIENT_READ;
        reserve(in, room);
        ssize_t n = read(client->fd, in->at + in->len, room);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return hang_up(client);
        in->len += (size_t)n;
        if (in->len < client->need) return;
        count = commands(in->at, in->len, &used, &client->need);
        if (count < 0) return hang_up(client);
        append(&upstream.out, in->at, used);
        memmove(in->at, in->at + used, in->len -= used);
    }
    expect(client, count);
}

/* Bytes of the reply that is being read, to whom it is for. */
static void deliver(const char *from, size_t n) {
    struct peer *client = waiting[first_waiter].client;
    if (client->closed) return;
    append(&client->out, from, n);
    if (client->dirty) return;
    client->dirty = 1;
    if (dirty_len == dirty_cap) dirty = grown(dirty, (dirty_cap = dirty_cap ? dirty_cap * 2 : 1024) * sizeof *dirty);
    dirty[dirty_len++] = client;
}

static void delivered(void) {
    struct waiter *front = &waiting[first_waiter];
    if (--front->replies) return;
    first_waiter = (first_waiter + 1) % waiting_cap;
    waiters--;
    front->client->owed--;
    release(front->client);
}

/* Where the reply that is being read ends: values still due, and bytes of the present one still to come. */
static long due;
static size_t body;

static void upstream_readable(void) {
    struct bytes *in = &upstream.in;
    reserve(in, UPSTREAM_READ);
    ssize_t n = read(upstream.fd, in->at + in->len, UPSTREAM_READ);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) exit(1);
    in->len += (size_t)n;

    const char *p = in->at, *limit = p + in->len, *from = p;
    while (p < limit) {
        if (!waiters) {
            fprintf(stderr, "floor: a reply that nobody awaits\n");
            exit(1);
        }
        if (body) {
            size_t here = body < (size_t)(limit - p) ? body : (size_t)(limit - p);
            p += here, body -= here;
            if (body) break;
        } else {
            const char *end = memchr(p, '\n', (size_t)(limit - p)), *ignored;
            if (!end) break;
            long number = header(p, end + 1, &ignored);
            if (!due) due = 1;
            if (number >= 0) switch (*p) {
                case '$': case '=': case '!': body = (size_t)number + 2; break;
                case '*': case '~': due += number; break;
                case '%': due += 2 * number; break;
            }
            p = end + 1;
            due--;
            if (body) continue;
        }
        if (!due) {
            deliver(from, (size_t)(p - from));
            delivered();
            from = p;
        }
    }
    if (p > from) deliver(from, (size_t)(p - from));
    memmove(in->at, p, in->len = (size_t)(limit - p));
}

/* 0 when the connection is lost. */
static int flush(struct peer *p) {
    ssize_t n = write(p->fd, p->out.at + p->sent, p->out.len - p->sent);
    if (n < 0 && errno != EAGAIN) return 0;
    if (n > 0) p->sent += (size_t)n;
    int left = p->sent < p->out.len;
    if (!left) p->sent = p->out.len = 0;
    if (left != p->blocked) watch(p, EPOLL_CTL_MOD, left ? EPOLLIN | EPOLLOUT : EPOLLIN);
    p->blocked = left;
    return 1;
}

static void accept_all(void) {
    int fd, on = 1;
    while ((fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct peer *client = grown(NULL, sizeof *client);
        *client = (struct peer){.fd = fd};
        watch(client, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static struct sockaddr_in loopback(const char *port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

int main(int argc, char **argv) {
    int on = 1;
    if (argc != 3) {
        fprintf(stderr, "usage: floor LISTEN_PORT UPSTREAM_PORT\n");
        return 64;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in here = loopback(argv[1]), there = loopback(argv[2]);
    upstream.fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(upstream.fd, (void *)&there, sizeof there)) {
        perror("floor: connect");
        return 1;
    }
    setsockopt(upstream.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener.fd, (void *)&here, sizeof here) || listen(listener.fd, 4096)) {
        perror("floor: listen");
        return 1;
    }
    poller = epoll_create1(0);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(&upstream, EPOLL_CTL_ADD, EPOLLIN);

    static struct epoll_event events[EVENTS];
    for (;;) {
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            struct peer *p = events[i].data.ptr;
            if (p == &listener) {
                accept_all();
                continue;
            }
            if (events[i].events & EPOLLOUT && !flush(p)) {
                if (p == &upstream) return 1;
                hang_up(p);
                continue;
            }
            if (!(events[i].events & ~(uint32_t)EPOLLOUT)) continue;
            if (p == &upstream) upstream_readable();
            else client_readable(p);
        }
        /* All that this turn brought leaves now. */
        if (upstream.out.len && !upstream.blocked && !flush(&upstream)) return 1;
        for (size_t i = 0; i < dirty_len; i++) {
            dirty[i]->dirty = 0;
            if (dirty[i]->closed) release(dirty[i]);
            else if (!dirty[i]->blocked && !flush(dirty[i])) hang_up(dirty[i]);
        }
        dirty_len = 0;
    }
}
