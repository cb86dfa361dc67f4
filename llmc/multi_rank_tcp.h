/*
The bytes of a round of multi_rank.h without MPI: a connection between every two ranks, over TCP or,
on one host, in memory. Whatever breaks them has a cause that the watchdog sees as well and can name;
so a rank with a broken connection only waits for it.

How they find each other: rank 0 listens beside the place where the ranks have met (rendezvous.h):

    @NAME  ->  @NAME-data        HOST:PORT  ->  HOST:PORT+1        /FILE  ->  /FILE.data

The others connect to it, each says at which place it listens itself, gets the list of all places, and
connects to the ranks between 0 and its own.

C11 that also compiles as C++17. POSIX; IPv4.
*/
#ifndef LLMC_MULTI_RANK_TCP_H
#define LLMC_MULTI_RANK_TCP_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include "rendezvous.h"
#include "watchdog.h"

#define RANKS_TCP_MAGIC 0x6c6c6d63u         // a greeting that a stranger would not guess

// What travels between two ranks.
typedef struct {
    char* data;
    size_t bytes;
} RanksMessage;

// The first thing that a connection carries.
typedef struct {
    uint32_t magic;
    int32_t rank;
    char place[RENDEZVOUS_TEXT];            // where this rank listens; ":PORT" if on its own host
} RanksTcpGreeting;

// All of it, or 0 if the other side is gone.
static inline int ranks_tcp_send(int socket, const void* data, size_t bytes) {
    for (const char* at = (const char*)data; bytes > 0;) {
        ssize_t n = send(socket, at, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) { continue; }
        if (n <= 0) { return 0; }
        at += n;
        bytes -= (size_t)n;
    }
    return 1;
}

static inline int ranks_tcp_receive(int socket, void* data, size_t bytes) {
    for (char* at = (char*)data; bytes > 0;) {
        ssize_t n = recv(socket, at, bytes, 0);
        if (n < 0 && errno == EINTR) { continue; }
        if (n <= 0) { return 0; }
        at += n;
        bytes -= (size_t)n;
    }
    return 1;
}

// text (RENDEZVOUS_TEXT) = the place of rank 0's data, from where the ranks have met.
static inline void ranks_tcp_place(char* text, const char* address) {
    const char* port = strrchr(address, ':');
    int length;
    if (address[0] == '@') { length = snprintf(text, RENDEZVOUS_TEXT, "%s-data", address); }
    else if (address[0] == '/') { length = snprintf(text, RENDEZVOUS_TEXT, "%s.data", address); }
    else {
        check(port != NULL, "'%s' is no place to meet: neither HOST:PORT nor /FILE", address);
        length = snprintf(text, RENDEZVOUS_TEXT, "%.*s:%d", (int)(port - address), address,
                          atoi(port + 1) + 1);
    }
    check(length < RENDEZVOUS_TEXT, "%s is too long", address);
}

// Tries until somebody listens there; that all ranks have started is known, and the watchdog watches.
static inline int ranks_tcp_connect(const char* place) {
    int connection;
    while ((connection = rendezvous_connect(place)) < 0) { watchdog_sleep(0.01); }
    return connection;
}

// The next rank that comes; strangers are sent away.
static inline int ranks_tcp_accept(int listener, RanksTcpGreeting* greeting, int size) {
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) { continue; }
        if (ranks_tcp_receive(connection, greeting, sizeof(*greeting)) &&
            greeting->magic == RANKS_TCP_MAGIC && greeting->rank > 0 && greeting->rank < size) {
            greeting->place[RENDEZVOUS_TEXT - 1] = '\0';
            return connection;
        }
        close(connection);
    }
}

// ":PORT" of a rank becomes HOST:PORT, with the host that it called from.
static inline void ranks_tcp_complete(char* place /* (RENDEZVOUS_TEXT) */, int connection) {
    if (place[0] != ':') { return; }
    struct sockaddr_in peer;
    socklen_t length = sizeof(peer);
    char host[INET_ADDRSTRLEN] = "";
    int port = atoi(place + 1);
    check(getpeername(connection, (struct sockaddr*)&peer, &length) == 0 &&
          inet_ntop(AF_INET, &peer.sin_addr, host, sizeof(host)) != NULL,
          "cannot find out where a rank is: %s", strerror(errno));
    snprintf(place, RENDEZVOUS_TEXT, "%s:%d", host, port);
}

// sockets (size) = this rank's connections to the others; its own is -1. `address` is where the ranks
// have met.
static inline int* ranks_tcp_open(int rank, int size, const char* address) {
    int* sockets = (int*)xmalloc((size_t)size * sizeof(*sockets), "connections");
    RanksTcpGreeting* all = (RanksTcpGreeting*)xcalloc((size_t)size * sizeof(*all), "places");
    RanksTcpGreeting own, other;
    char data[RENDEZVOUS_TEXT];
    ranks_tcp_place(data, address);
    memset(&own, 0, sizeof(own));
    own.magic = RANKS_TCP_MAGIC;
    own.rank = rank;
    sockets[rank] = -1;
    int listener;
    if (rank == 0) {
        listener = rendezvous_listen(data);
        for (int i = 1; i < size; i++) {
            int connection = ranks_tcp_accept(listener, &other, size);
            ranks_tcp_complete(other.place, connection);
            sockets[other.rank] = connection;
            all[other.rank] = other;
        }
        for (int i = 1; i < size; i++) {
            ranks_tcp_send(sockets[i], all, (size_t)size * sizeof(*all));
        }
    } else {
        int in_memory = data[0] == '@';
        if (in_memory) {
            int length = snprintf(own.place, sizeof(own.place), "%s-%d", data, rank);
            check(length < RENDEZVOUS_TEXT, "%s is too long", data);
        }
        listener = rendezvous_listen(in_memory ? own.place : ":0");
        if (!in_memory) {
            struct sockaddr_in bound;
            socklen_t length = sizeof(bound);
            check(getsockname(listener, (struct sockaddr*)&bound, &length) == 0,
                  "cannot find out a port: %s", strerror(errno));
            snprintf(own.place, sizeof(own.place), ":%d", ntohs(bound.sin_port));
        }
        sockets[0] = ranks_tcp_connect(data);
        int good = ranks_tcp_send(sockets[0], &own, sizeof(own)) &&
                   ranks_tcp_receive(sockets[0], all, (size_t)size * sizeof(*all));
        for (int i = 1; i < rank && good; i++) {
            sockets[i] = ranks_tcp_connect(all[i].place);
            good = ranks_tcp_send(sockets[i], &own, sizeof(own));
        }
        for (int i = rank + 1; i < size && good; i++) {
            int connection = ranks_tcp_accept(listener, &other, size);
            sockets[other.rank] = connection;
        }
        while (!good) { watchdog_sleep(1.0); }      // a rank is gone, and the watchdog says which
    }
    close(listener);
    if (rank == 0 && data[0] == '/') { remove(data); }      // everybody has read it
    free(all);
    for (int i = 0; i < size; i++) {
        int on = 1;
        if (i == rank) { continue; }
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // fails in memory
        check(fcntl(sockets[i], F_SETFL, O_NONBLOCK) == 0, "a connection: %s", strerror(errno));
    }
    return sockets;
}

static inline void ranks_tcp_close(int* sockets, int size) {
    for (int i = 0; i < size; i++) {
        if (sockets[i] >= 0) { close(sockets[i]); }
    }
    free(sockets);
}

// As much of a message as goes now. Returns 0 if the connection is broken.
static inline int ranks_tcp_move(int socket, RanksMessage* m, int sends) {
    ssize_t n = sends ? send(socket, m->data, m->bytes, MSG_NOSIGNAL)
                      : recv(socket, m->data, m->bytes, 0);
    if (n < 0) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }
    m->data += n;
    m->bytes -= (size_t)n;
    return n > 0;
}

// One round, as ranks_mpi_exchange: sends all_to[i] to rank i and receives all_from[i] (size) from it.
static inline void ranks_tcp_exchange(const int* sockets, int rank, int size,
                                      const RanksMessage* all_to, const RanksMessage* all_from) {
    size_t n = (size_t)size;
    struct pollfd* fds = (struct pollfd*)xcalloc(n * sizeof(*fds), "a round");
    RanksMessage* to = (RanksMessage*)xmalloc(2 * n * sizeof(*to), "a round");      // what is left
    RanksMessage* from = to + n;
    memcpy(to, all_to, n * sizeof(*to));
    memcpy(from, all_from, n * sizeof(*from));
    for (int left = 1, good = 1; left > 0;) {
        left = 0;
        for (int i = 0; i < size; i++) {
            fds[i].events = (short)(i == rank ? 0 : (to[i].bytes > 0 ? POLLOUT : 0) |
                                                    (from[i].bytes > 0 ? POLLIN : 0));
            fds[i].fd = fds[i].events != 0 ? sockets[i] : -1;
            left += fds[i].events != 0;
        }
        if (left > 0 && poll(fds, (nfds_t)size, -1) > 0) {
            for (int i = 0; i < size; i++) {
                int broken = fds[i].fd >= 0 && (fds[i].revents & (POLLERR | POLLHUP | POLLNVAL));
                if (fds[i].fd >= 0 && (fds[i].revents & POLLOUT)) {
                    good = good && ranks_tcp_move(sockets[i], &to[i], 1);
                }
                if (fds[i].fd >= 0 && from[i].bytes > 0 && ((fds[i].revents & POLLIN) || broken)) {
                    good = good && ranks_tcp_move(sockets[i], &from[i], 0);
                } else if (broken) { good = 0; }
            }
        }
        while (!good) { watchdog_sleep(1.0); }      // a rank is gone, and the watchdog says which
    }
    free(fds);
    free(to);
}

#endif
