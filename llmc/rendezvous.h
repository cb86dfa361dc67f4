/*
How the processes of a run find each other before anything else connects them: rank 0 listens on a
socket, the others connect to it. The address on which they agree is one of

    @NAME        ranks of one host: a socket that exists only in memory (Linux)
    HOST:PORT    the host of rank 0, and a port that is free there
    /PATH        a file that all hosts see: rank 0 picks a port and writes its HOST:PORT there,
                 over what was in it

C11 that also compiles as C++17. POSIX; IPv4.
*/
#ifndef LLMC_RENDEZVOUS_H
#define LLMC_RENDEZVOUS_H

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include "utils.h"

#define RENDEZVOUS_TEXT 256             // bytes

typedef struct {
    union { struct sockaddr any; struct sockaddr_in ip; struct sockaddr_un local; } to;
    socklen_t length;
} SocketAddress;

// 0 if the host is not known. For listening the host does not matter: any interface will do.
static inline int rendezvous_resolve(SocketAddress* address, const char* text, int listening) {
    memset(address, 0, sizeof(*address));
    if (text[0] == '@') {
        size_t length = strlen(text + 1);
        check(length + 1 < sizeof(address->to.local.sun_path), "%s is too long", text);
        address->to.local.sun_family = AF_UNIX;
        memcpy(address->to.local.sun_path + 1, text + 1, length);
        address->length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
        return 1;
    }
    char host[RENDEZVOUS_TEXT];
    snprintf(host, sizeof(host), "%s", text);
    char* port = strrchr(host, ':');
    check(port != NULL && port[1] != '\0', "'%s' is no place to meet: neither HOST:PORT nor /FILE",
          text);
    *port++ = '\0';
    struct addrinfo hints, *found = NULL;
    memset(&hints, 0, sizeof(hints));
    hints.ai_family = AF_INET;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    if (getaddrinfo(listening ? NULL : host, port, &hints, &found) != 0) { return 0; }
    memcpy(&address->to.ip, found->ai_addr, sizeof(address->to.ip));
    address->length = sizeof(address->to.ip);
    freeaddrinfo(found);
    return 1;
}

// Rank 0.
static inline int rendezvous_listen(const char* text) {
    SocketAddress address;
    int on = 1, file = text[0] == '/';
    check(rendezvous_resolve(&address, file ? ":0" : text, 1), "%s is no address", text);
    int listener = socket(address.to.any.sa_family, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    check(listener >= 0 && bind(listener, &address.to.any, address.length) == 0 &&
          listen(listener, SOMAXCONN) == 0, "rank 0 cannot listen at %s: %s", text,
          strerror(errno));
    if (file) {
        char host[RENDEZVOUS_TEXT / 2] = "", line[RENDEZVOUS_TEXT];
        check(gethostname(host, sizeof(host) - 1) == 0 && getsockname(listener, &address.to.any,
              &address.length) == 0, "cannot find out this host's name: %s", strerror(errno));
        int length = snprintf(line, sizeof(line), "%s:%d", host, ntohs(address.to.ip.sin_port));
        FILE* to = file_create(text);
        file_write(line, (size_t)length, to, text);
        file_commit(to, text);
    }
    return listener;
}

// The other ranks: one attempt. Returns the socket, or -1. A file of an earlier run leads nowhere.
static inline int rendezvous_connect(const char* text) {
    SocketAddress address;
    char line[RENDEZVOUS_TEXT];
    if (text[0] == '/') {
        FILE* file = fopen(text, "r");
        size_t length = file == NULL ? 0 : fread(line, 1, sizeof(line) - 1, file);
        if (file != NULL) { fclose(file); }
        line[length] = '\0';
        if (length == 0) { return -1; }
        text = line;
    }
    if (!rendezvous_resolve(&address, text, 0)) { return -1; }
    struct timeval second = { 1, 0 };       // the most that connect may take (Linux)
    int connection = socket(address.to.any.sa_family, SOCK_STREAM, 0);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &second, sizeof(second));
    if (connection >= 0 && connect(connection, &address.to.any, address.length) != 0) {
        close(connection);
        return -1;
    }
    return connection;
}

#endif
