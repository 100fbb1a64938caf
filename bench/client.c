/* The load generator, in C so that it takes next to nothing of the CPU that is measured.

   client http PORT CONNECTIONS SECONDS COUNT MARK FILE   requests over kept-alive connections to the loopback
   client spawn COUNT PROGRAM [ARGUMENTS]                 runs a program again and again

   FILE holds whole HTTP/1.1 requests, each followed by a NUL; they are sent in turn. SECONDS or COUNT may be 0 for no
   limit. An answer fails that is not 200 or lacks MARK. Prints JSON: for each answer the microseconds until MARK came
   and until the answer ended; how many failed; the seconds that all of it took. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROOM (1 << 20)

extern char **environ;

typedef struct {
    int fd;
    double sent, marked;
    size_t filled;
    char *buffer;
} Connection;

static char *requests[100000];
static int request_count, next_request;
static double *marked_us, *ended_us;
static long done, failed, started, room;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void note(double marked, double ended) {
    if (done == room) {
        room = room ? room * 2 : 4096;
        marked_us = realloc(marked_us, room * sizeof *marked_us);
        ended_us = realloc(ended_us, room * sizeof *ended_us);
        if (!marked_us || !ended_us) die("realloc");
    }
    marked_us[done] = marked;
    ended_us[done++] = ended;
}

static void load_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    size_t size = 0;
    if (!file) die(path);
    while (getdelim(&text, &size, 0, file) > 0 && request_count < 100000) {
        requests[request_count++] = text;
        text = NULL;
        size = 0;
    }
    fclose(file);
    if (!request_count) exit(2);
}

static void send_request(Connection *c) {
    const char *request = requests[next_request++ % request_count];
    size_t left = strlen(request);
    started++;
    c->filled = 0;
    c->marked = -1;
    c->sent = now_us();
    while (left) {
        ssize_t n = send(c->fd, request, left, MSG_NOSIGNAL);
        if (n < 0) die("send");
        request += n;
        left -= n;
    }
}

/* Whether the whole answer is in the buffer. */
static int is_complete(Connection *c) {
    char *body = strstr(c->buffer, "\r\n\r\n");
    if (!body) return 0;
    body += 4;
    char *length = strcasestr(c->buffer, "\r\ncontent-length:");
    if (length && length < body) return c->filled >= (size_t)(body - c->buffer) + strtoul(length + 17, NULL, 10);
    size_t got = c->filled - (body - c->buffer);
    return got >= 5 && !memcmp(c->buffer + c->filled - 5, "0\r\n\r\n", 5) &&
           (got == 5 || c->buffer[c->filled - 6] == '\n');
}

/* Takes in what came; 1 when the answer is complete, -1 when the connection broke. */
static int receive(Connection *c, const char *mark) {
    ssize_t n = recv(c->fd, c->buffer + c->filled, ROOM - 1 - c->filled, 0);
    if (n <= 0) return -1;
    size_t from = c->filled > strlen(mark) ? c->filled - strlen(mark) : 0;
    c->filled += n;
    c->buffer[c->filled] = 0;
    if (c->marked < 0 && strstr(c->buffer + from, mark)) c->marked = now_us();
    if (c->filled == ROOM - 1) return -1;
    return is_complete(c);
}

static void connect_to(Connection *c, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static double http(int port, int count, double seconds, long limit, const char *mark) {
    Connection *connections = calloc(count, sizeof *connections);
    int poll = epoll_create1(0), open = count;
    if (!connections || poll < 0) die("setup");
    for (int i = 0; i < count; i++) {
        connections[i].buffer = malloc(ROOM);
        if (!connections[i].buffer) die("malloc");
        connect_to(&connections[i], port);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &event);
    }
    double began = now_us(), until = seconds ? began + seconds * 1e6 : 1e300;
    for (int i = 0; i < count; i++) send_request(&connections[i]);
    while (open) {
        struct epoll_event events[64];
        int ready = epoll_wait(poll, events, 64, 60000);
        if (ready == 0) {
            fprintf(stderr, "no answer within 60 seconds\n");
            failed += open;
            break;
        }
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            int state = receive(c, mark);
            if (!state) continue;
            double now = now_us();
            if (state < 0 || strncmp(c->buffer, "HTTP/1.1 200", 12) || c->marked < 0) {
                if (!failed++) fprintf(stderr, "the first failure: %.600s\n", c->filled ? c->buffer : "no answer");
            } else {
                note(c->marked - c->sent, now - c->sent);
            }
            if (now < until && (!limit || started < limit) && state > 0) {
                send_request(c);
            } else {
                close(c->fd);
                open--;
            }
        }
    }
    return (now_us() - began) / 1e6;
}

static double spawn(long limit, char **command) {
    double began = now_us();
    while (started++ < limit) {
        pid_t pid;
        int status;
        double start = now_us();
        errno = posix_spawn(&pid, command[0], NULL, NULL, command, environ);
        if (errno) die(command[0]);
        if (waitpid(pid, &status, 0) != pid || status) failed++;
        note(now_us() - start, now_us() - start);
    }
    return (now_us() - began) / 1e6;
}

static void print_times(const char *name, const double *times) {
    printf("\"%s\": [", name);
    for (long i = 0; i < done; i++) printf("%s%.1f", i ? ", " : "", times[i]);
    printf("], ");
}

int main(int argc, char **argv) {
    double took;
    if (argc == 8 && !strcmp(argv[1], "http")) {
        load_requests(argv[7]);
        took = http(atoi(argv[2]), atoi(argv[3]), atof(argv[4]), atol(argv[5]), argv[6]);
    } else if (argc > 3 && !strcmp(argv[1], "spawn")) {
        took = spawn(atol(argv[2]), argv + 3);
    } else {
        fprintf(stderr, "usage: see the top of client.c\n");
        return 2;
    }
    printf("{");
    print_times("marked", marked_us);
    print_times("ended", ended_us);
    printf("\"failed\": %ld, \"seconds\": %.6f}\n", failed, took);
    return 0;
}
