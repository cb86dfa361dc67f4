/*
Ends every rank of a run, with a message, when one of them is missing, dead or stuck.

A rank that waits in a collective cannot know whether the others will ever come. So each process has
a thread that talks past the collectives, over a socket of its own: rank 0 is the centre of a star,
the others connect to it, and both sides send heartbeats, four a second. From that follows

    no connection within the timeout    a rank has not started
    the connection ends                 the rank is dead: the kernel closes a killed process's
                                        sockets, so this is noticed at once
    a farewell before that              the rank ended with an error of its own
    connection, but no heartbeat        the process is stopped, or its host or network is gone
    heartbeats, but all ranks wait      a fault of the program or of the network (twice the timeout)
    heartbeats, and one rank works      nothing wrong, however long it takes (a checkpoint, a
                                        compilation); rank 0 prints a note

Rank 0 judges and tells the others; about rank 0 each judges for itself. The message names the rank
at fault and the collective in which the printing rank waits. Time in which this process was stopped
itself does not count against the others, so a whole run may be stopped and continued.

It knows nothing of MPI, NCCL or training: whatever moves the data, watchdog_enter and
watchdog_leave stand around it.

C11 that also compiles as C++17. POSIX threads and sockets.
*/
#ifndef LLMC_WATCHDOG_H
#define LLMC_WATCHDOG_H

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include "rendezvous.h"

#define WATCHDOG_MAGIC 20261123u
#define WATCHDOG_TICK 0.05          // seconds; how long a message may lie unread
#define WATCHDOG_BEAT 0.25          // seconds between heartbeats; the timeout is at least 1
#define WATCHDOG_TEXT 256           // bytes

typedef enum { WATCHDOG_HEARTBEAT, WATCHDOG_ALL_HERE, WATCHDOG_FINISHED, WATCHDOG_ENDED }
    WatchdogKind;

typedef struct {            // as it goes over the wire; all hosts have the same byte order
    uint32_t magic;
    int32_t kind, rank, size;
    uint64_t moves;         // grows whenever a collective begins, ends, or has moved a piece
    uint64_t number;        // of the collective
    int32_t waiting;        // 1: inside it; 0: at work after it
    char text[WATCHDOG_TEXT];   // its name; with WATCHDOG_ENDED the reason
} WatchdogMessage;

typedef struct {
    int socket;             // -1: none
    int rank;               // -1: has not said yet
    int finished;
    double heard;           // when the last message came, as of seconds_now
    WatchdogMessage last, incoming;
    size_t received;        // bytes of `incoming` that are here
} WatchdogPeer;

typedef struct {
    int rank, size;
    double timeout;                         // seconds
    pthread_t thread;
    pthread_mutex_t mutex;                  // guards the next three
    WatchdogMessage own;
    int all_here;
    int leaving;                            // the thread has to send this kind of message and end
    volatile sig_atomic_t told_to_end;      // SIGTERM has come
    // of the thread alone
    int listener;                           // rank 0 until all are here, else -1
    int num_peers;
    WatchdogPeer* peers;                    // rank 0: the others as they came; others: rank 0
    double opened;                          // moments as of seconds_now
    uint64_t moves;                         // of all ranks together, as far as rank 0 knows
    double moved;                           // when that last grew
    int noted;                              // the long wait at hand has been mentioned
} Watchdog;

// The one of this process, for signals and exit.
static inline Watchdog** watchdog_active(void) {
    static Watchdog* active = NULL;
    return &active;
}

static inline void watchdog_sleep(double seconds) {
    struct timespec time;
    time.tv_sec = (time_t)seconds;
    time.tv_nsec = (long)(1e9 * (seconds - (double)time.tv_sec));
    nanosleep(&time, NULL);
}

static inline int watchdog_get(Watchdog* w, const int* variable) {
    pthread_mutex_lock(&w->mutex);
    int value = *variable;
    pthread_mutex_unlock(&w->mutex);
    return value;
}

static inline void watchdog_set(Watchdog* w, int* variable, int value) {
    pthread_mutex_lock(&w->mutex);
    *variable = value;
    pthread_mutex_unlock(&w->mutex);
}

static inline WatchdogMessage watchdog_own(Watchdog* w) {
    pthread_mutex_lock(&w->mutex);
    WatchdogMessage own = w->own;
    pthread_mutex_unlock(&w->mutex);
    return own;
}

// Where a rank is, to be followed by the name of the collective.
static inline const char* watchdog_place(const WatchdogMessage* message) {
    return message->waiting ? "waiting in" : "at work after";
}

static inline WatchdogPeer* watchdog_find(const Watchdog* w, int rank) {
    for (int i = 0; i < w->num_peers; i++) {
        if (w->peers[i].rank == rank) { return &w->peers[i]; }
    }
    return NULL;
}

// ---------------------------------------------------------------------------------------------
// What main says

static inline void watchdog_say(Watchdog* w, int waiting, const char* what) {
    pthread_mutex_lock(&w->mutex);
    w->own.moves++;
    w->own.waiting = waiting;
    if (what != NULL) {
        w->own.number++;
        snprintf(w->own.text, sizeof(w->own.text), "%s", what);
    }
    pthread_mutex_unlock(&w->mutex);
}

static inline void watchdog_enter(Watchdog* w, const char* what) { watchdog_say(w, 1, what); }
static inline void watchdog_move(Watchdog* w) { watchdog_say(w, 1, NULL); }     // a piece is done
static inline void watchdog_leave(Watchdog* w) { watchdog_say(w, 0, NULL); }

// ---------------------------------------------------------------------------------------------
// Messages

// To everybody connected. What does not fit into a socket's buffer is lost: its reader is stuck.
static inline void watchdog_send(Watchdog* w, WatchdogKind kind, const char* text) {
    WatchdogMessage message = watchdog_own(w);
    message.kind = (int32_t)kind;
    if (text != NULL) { snprintf(message.text, sizeof(message.text), "%s", text); }
    for (int i = 0; i < w->num_peers; i++) {
        if (w->peers[i].socket >= 0) {
            send(w->peers[i].socket, &message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT);
        }
    }
}

// Ends this process, and those connected to it. One write, so that lines of ranks do not mix.
__attribute__((noreturn, format(printf, 2, 3)))
static inline void watchdog_end(Watchdog* w, const char* format, ...) {
    char reason[WATCHDOG_TEXT], line[4 * WATCHDOG_TEXT];
    va_list values;
    va_start(values, format);
    vsnprintf(reason, sizeof(reason), format, values);
    va_end(values);
    watchdog_send(w, WATCHDOG_ENDED, reason);
    WatchdogMessage own = watchdog_own(w);
    int length = snprintf(line, sizeof(line), "error: rank %d of %d ends, %s '%s' (collective %"
                          PRIu64 "): %s\n", w->rank, w->size, watchdog_place(&own), own.text,
                          own.number, reason);
    if (write(STDERR_FILENO, line, (size_t)length) != length) { _exit(1); }
    if (w->rank == 0) { watchdog_sleep(0.2); }      // a launcher that sees rank 0 end kills all
    _exit(1);
}

// One complete message from this peer.
static inline void watchdog_take(Watchdog* w, WatchdogPeer* peer) {
    const WatchdogMessage* message = &peer->incoming;
    if (message->magic != WATCHDOG_MAGIC || message->rank < 0) {        // not one of us
        close(peer->socket);
        peer->socket = -1;
        return;
    }
    if (peer->rank < 0 && watchdog_find(w, message->rank) != NULL) {
        watchdog_end(w, "two processes are rank %d", message->rank);
    }
    if (message->size != w->size) {
        watchdog_end(w, "rank %d was started as one of %d ranks, rank %d as one of %d",
                     message->rank, message->size, w->rank, w->size);
    }
    peer->rank = message->rank;
    peer->last = *message;
    peer->last.text[WATCHDOG_TEXT - 1] = '\0';
    peer->heard = seconds_now();
    peer->finished = message->kind == WATCHDOG_FINISHED;
    if (message->kind == WATCHDOG_ALL_HERE) { watchdog_set(w, &w->all_here, 1); }
    if (message->kind == WATCHDOG_ENDED) { watchdog_end(w, "%s", peer->last.text); }
}

// Reads what is there. The end of the connection is a death, unless the peer had finished.
static inline void watchdog_receive(Watchdog* w, WatchdogPeer* peer) {
    while (peer->socket >= 0) {
        ssize_t got = recv(peer->socket, (char*)&peer->incoming + peer->received,
                           sizeof(peer->incoming) - peer->received, MSG_DONTWAIT);
        if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) { return; }
        if (got <= 0) {
            close(peer->socket);
            peer->socket = -1;
            if (peer->rank >= 0 && !peer->finished) {
                watchdog_end(w, "rank %d has died (killed, crashed, or its host is gone); it was "
                             "last heard of %s '%s'", peer->rank, watchdog_place(&peer->last),
                             peer->last.text);
            }
            return;
        }
        peer->received += (size_t)got;
        if (peer->received == sizeof(peer->incoming)) {
            peer->received = 0;
            watchdog_take(w, peer);
        }
    }
}

static inline void watchdog_accept(Watchdog* w) {
    int connection = accept(w->listener, NULL, NULL);
    for (int i = 0; connection >= 0 && i < w->num_peers; i++) {
        WatchdogPeer* peer = &w->peers[i];
        if (peer->socket < 0) {
            memset(peer, 0, sizeof(*peer));
            peer->rank = -1;
            peer->socket = connection;
            return;
        }
    }
    if (connection >= 0) { close(connection); }     // strangers have filled the table
}

// Waits at most one tick for messages and reads them. fds (num_peers + 1)
static inline void watchdog_listen(Watchdog* w, struct pollfd* fds) {
    for (int i = 0; i <= w->num_peers; i++) {       // poll skips negative ones
        fds[i].fd = i < w->num_peers ? w->peers[i].socket : w->listener;
        fds[i].events = POLLIN;
    }
    if (poll(fds, (nfds_t)w->num_peers + 1, (int)(1e3 * WATCHDOG_TICK)) <= 0) { return; }
    for (int i = 0; i < w->num_peers; i++) {
        if (fds[i].revents != 0) { watchdog_receive(w, &w->peers[i]); }
    }
    if (fds[w->num_peers].revents != 0) { watchdog_accept(w); }
}

// ---------------------------------------------------------------------------------------------
// Judgement, once a heartbeat

// Adds " 2" to a list of ranks, or " 2: 'gradients'".
static inline void watchdog_list(char* list /* (WATCHDOG_TEXT) */, int rank, const char* text) {
    char item[2 * WATCHDOG_TEXT];
    snprintf(item, sizeof(item), text == NULL ? " %d" : " %d: '%s'", rank, text);
    strncat(list, item, WATCHDOG_TEXT - 1 - strlen(list));
}

// Rank 0, while some have not connected: welcomes everybody once all are here.
static inline void watchdog_gather(Watchdog* w, double now) {
    char missing[WATCHDOG_TEXT] = "";
    for (int rank = 1; rank < w->size; rank++) {
        if (watchdog_find(w, rank) == NULL) { watchdog_list(missing, rank, NULL); }
    }
    if (missing[0] == '\0') {
        close(w->listener);
        w->listener = -1;
        w->moved = now;
        watchdog_send(w, WATCHDOG_ALL_HERE, NULL);
        watchdog_set(w, &w->all_here, 1);
    } else if (now - w->opened > w->timeout) {
        watchdog_end(w, "for %.0f s these ranks have not started, or not been able to connect:%s",
                     w->timeout, missing);
    }
}

// Rank 0, when all are here: does any rank still move?
static inline void watchdog_compare(Watchdog* w, double now) {
    char waiting[WATCHDOG_TEXT] = "", working[WATCHDOG_TEXT] = "";
    uint64_t moves = 0;
    for (int rank = 0; rank < w->size; rank++) {
        WatchdogMessage last = rank == 0 ? watchdog_own(w) : watchdog_find(w, rank)->last;
        moves += last.moves;
        watchdog_list(last.waiting ? waiting : working, rank, last.text);
    }
    if (moves != w->moves) {
        w->moves = moves;
        w->moved = now;
        w->noted = 0;
    }
    if (working[0] == '\0' && now - w->moved > 2.0 * w->timeout) {
        watchdog_end(w, "for %.0f s all ranks have been waiting for each other:%s", now - w->moved,
                     waiting);
    }
    if (working[0] != '\0' && waiting[0] != '\0' && !w->noted && now - w->moved > w->timeout) {
        w->noted = 1;
        fprintf(stderr, "note: for %.0f s ranks have been waiting:%s; the others are alive and at "
                "work, after:%s\n", now - w->moved, waiting, working);
    }
}

static inline void watchdog_judge(Watchdog* w, double now) {
    for (int i = 0; i < w->num_peers; i++) {
        const WatchdogPeer* peer = &w->peers[i];
        if (peer->rank >= 0 && !peer->finished && now - peer->heard > w->timeout) {
            watchdog_end(w, "rank %d has been silent for %.0f s (stopped, or its host or network "
                         "is gone); it was last heard of %s '%s'", peer->rank, now - peer->heard,
                         watchdog_place(&peer->last), peer->last.text);
        }
    }
    if (w->listener >= 0) {
        watchdog_gather(w, now);
    } else if (w->rank == 0) {
        watchdog_compare(w, now);
    }
}

// ---------------------------------------------------------------------------------------------
// The thread, its start and its end

static inline void* watchdog_run(void* watchdog) {
    Watchdog* w = (Watchdog*)watchdog;
    struct pollfd* fds = (struct pollfd*)xcalloc((size_t)(w->num_peers + 1) * sizeof(*fds),
                                                 "the watchdog");
    double before = seconds_now(), beat = 0.0, told = 0.0;
    int leaving = 0;
    while ((leaving = watchdog_get(w, &w->leaving)) == 0) {
        watchdog_listen(w, fds);
        double now = seconds_now();
        if (now - before > 0.5 * w->timeout) {      // we were stopped ourselves: nobody is late
            for (int i = 0; i < w->num_peers; i++) { w->peers[i].heard = now; }
            w->moved = w->opened = now;
        }
        before = now;
        if (w->told_to_end) {                       // half a second to learn who has died
            told = told > 0.0 ? told : now;
            if (now - told > 0.5) { watchdog_end(w, "rank %d was told to end (SIGTERM)", w->rank); }
        }
        if (w->listener >= 0 || now - beat > WATCHDOG_BEAT) {
            beat = now;
            watchdog_send(w, WATCHDOG_HEARTBEAT, NULL);
            watchdog_judge(w, now);
        }
    }
    char farewell[WATCHDOG_TEXT];
    snprintf(farewell, sizeof(farewell), "rank %d has ended early; what it printed says why",
             w->rank);
    watchdog_send(w, (WatchdogKind)leaving, leaving == WATCHDOG_ENDED ? farewell : NULL);
    for (int i = 0; i < w->num_peers; i++) {
        if (w->peers[i].socket >= 0) { close(w->peers[i].socket); }
    }
    free(fds);
    free(w->peers);
    return NULL;
}

// Every rank has to call it, after the last collective.
static inline void watchdog_close(Watchdog* w) {
    *watchdog_active() = NULL;
    watchdog_set(w, &w->leaving, WATCHDOG_FINISHED);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->mutex);
    signal(SIGTERM, SIG_DFL);
}

// The program ends without watchdog_close, so by an error.
static inline void watchdog_on_exit(void) {
    Watchdog* w = *watchdog_active();
    if (w != NULL) {
        *watchdog_active() = NULL;                  // once is enough
        watchdog_set(w, &w->leaving, WATCHDOG_ENDED);
        pthread_join(w->thread, NULL);
    }
}

// SIGTERM: what mpirun sends to the others when one rank has died.
static inline void watchdog_on_signal(int number) {
    (void)number;
    Watchdog* w = *watchdog_active();
    if (w != NULL) { w->told_to_end = 1; }
}

// Returns when all ranks are here. `w` must stay where it is until watchdog_close; address as in
// rendezvous.h.
static inline void watchdog_open(Watchdog* w, int rank, int size, const char* address,
                                 double timeout) {
    check(timeout >= 1.0, "a timeout of %g s is too short; a second is the least", timeout);
    memset(w, 0, sizeof(*w));
    w->rank = rank;
    w->size = size;
    w->timeout = timeout;
    w->opened = seconds_now();
    w->own.magic = WATCHDOG_MAGIC;
    w->own.rank = rank;
    w->own.size = size;
    check(pthread_mutex_init(&w->mutex, NULL) == 0, "cannot make a mutex");
    watchdog_enter(w, "start");
    w->num_peers = rank == 0 ? size + 7 : 1;        // 7 more than needed: strangers
    w->peers = (WatchdogPeer*)xcalloc((size_t)w->num_peers * sizeof(*w->peers), "the watchdog");
    for (int i = 0; i < w->num_peers; i++) { w->peers[i].socket = w->peers[i].rank = -1; }
    w->listener = rank == 0 ? rendezvous_listen(address) : -1;
    while (rank != 0 && (w->peers[0].socket = rendezvous_connect(address)) < 0) {
        check(seconds_now() - w->opened < timeout, "rank %d of %d ends, waiting in 'start': for "
              "%g s rank 0 has not started, or not been to reach at %s", rank, size, timeout,
              address);
        watchdog_sleep(0.02);
    }
    if (rank != 0) {
        w->peers[0].rank = 0;
        w->peers[0].heard = seconds_now();
    }
    *watchdog_active() = w;
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = watchdog_on_signal;
    action.sa_flags = SA_RESTART;
    check(pthread_create(&w->thread, NULL, watchdog_run, w) == 0 && atexit(watchdog_on_exit) == 0 &&
          sigaction(SIGTERM, &action, NULL) == 0, "cannot start the watchdog");
    while (!watchdog_get(w, &w->all_here)) { watchdog_sleep(0.001); }
}

#endif
