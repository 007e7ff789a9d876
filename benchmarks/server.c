/* A stub of the fine-tunes API that is never the bottleneck: one thread, epoll, replies built before the first request.
   It creates and lists jobs in the dialects too: /v1/fine_tuning/jobs in pages, /together/v1/fine-tunes whole.

   Usage: server [jobs=N] [active=1] [batch=N] [lasts=N] [events=N] [chunk=BYTES] [every=MS] [bytes=N]

   jobs    jobs in the list
   active  whether they are active; by default they have ended
   batch   the list holds the jobs created so far instead; all run until there are so many, and then all have succeeded
   lasts   of a batch: a job has succeeded once so many more were created, and not only when all were
   events  events in a stream
   chunk   bytes of events in one HTTP chunk; 0 for one event a chunk
   every   milliseconds between two events; 0 sends all at once
   bytes   length of the file that is downloaded

   It listens on a free port of 127.0.0.1, prints the port, and ends when its standard input does. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum route { CREATE, LIST, RETRIEVE, EVENTS, UPLOAD, FILE_INFO, DOWNLOAD, UNKNOWN };
enum dialect { FINE_TUNES, JOBS, TOGETHER };
enum part { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct connection {
    int fd;
    enum part part;
    enum route route;
    enum dialect dialect;
    long after, limit;    /* of a page of the list: the number of the job before it, and its length */
    char metadata[2048];  /* of the job to create, as JSON: it is echoed */
    int closes, waits_for_write, reads_list;
    long left;            /* bytes of the request's body, or of its chunk */
    char line[32];        /* a chunk's size, as it comes */
    int line_size;
    char head[16384];     /* the request's head, as it comes */
    int head_size;
    char out[8192];       /* the reply's head, with a short body */
    long out_size, out_sent;
    const char *body;     /* a long body: `period` bytes, again and again, until none are left */
    long period, body_left, body_at;
    long long next_at;    /* when the next event of a paced stream is due; 0 for other connections */
    long events_left;
    int place;            /* among the paced streams */
    char *page;           /* a page of the list that is being sent */
    long number;          /* the job that the request names */
};

static long jobs, active, batch, lasts, events, chunk, every, bytes;
static long created;
static char *list, *together_list, *stream, *filler;
static long list_size, together_list_size, stream_size;
static int list_readers; /* connections to which a list is being sent */
static const long filler_size = 1 << 20;
static struct connection **paced;
static int paced_count, paced_room;
static struct connection **held;
static int held_count, held_room;
static int poller;

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static long write_file(char *out, long number, const char *purpose, const char *name) {
    return sprintf(out,
        "{\"object\":\"file\",\"id\":\"file-%010ld\",\"purpose\":\"%s\",\"filename\":\"%s\",\"bytes\":%ld,"
        "\"created_at\":1700000000,\"status\":\"processed\",\"status_details\":null}",
        number, purpose, name, bytes ? bytes : 103456L);
}

static long write_event(char *out, long number) {
    return sprintf(out,
        "{\"object\":\"fine-tune-event\",\"created_at\":%ld,\"level\":\"info\",\"message\":\"Completed epoch %ld/%ld\"}",
        1700000000 + number, number + 1, events);
}

static long write_job(char *out, long number, int is_over, int has_events) {
    char training[512], result[512] = "", event[256];
    write_file(training, number, "fine-tune", "train.jsonl");
    write_event(event, 0);
    if (is_over) write_file(result, number, "fine-tune-results", "compiled_results.csv");
    return sprintf(out,
        "{\"object\":\"fine-tune\",\"id\":\"ft-%010ld\",\"hyperparams\":{\"n_epochs\":4,\"batch_size\":8,"
        "\"prompt_loss_weight\":0.01,\"learning_rate_multiplier\":0.1},\"organization_id\":\"org-benchmark\","
        "\"model\":\"ada\",\"training_files\":[%s],\"validation_files\":[],\"result_files\":[%s],"
        "\"created_at\":1700000000,\"updated_at\":1700003600,\"status\":\"%s\",\"fine_tuned_model\":%s%s%s%s}",
        number, training, result, is_over ? "succeeded" : batch ? "running" : "pending",
        is_over ? "\"ada:ft-benchmark:scripts-2023-11-14-22-13-20\"" : "null",
        has_events ? ",\"events\":[" : "", has_events ? event : "", has_events ? "]" : "");
}

static int is_over(long number) {
    return batch ? created >= batch || (lasts && created >= number + lasts) : !active;
}

static long write_dialect_job(char *out, enum dialect dialect, long number, int is_over, const char *metadata) {
    if (dialect == JOBS)
        return sprintf(out,
            "{\"object\":\"fine_tuning.job\",\"id\":\"ftjob-%010ld\",\"model\":\"ada\",\"created_at\":1700000000,"
            "\"finished_at\":%s,\"fine_tuned_model\":%s,\"organization_id\":\"org-benchmark\",\"result_files\":[%s],"
            "\"status\":\"%s\",\"validation_file\":null,\"training_file\":\"file-0000000001\",\"hyperparameters\":"
            "{\"n_epochs\":4,\"batch_size\":8,\"learning_rate_multiplier\":0.1},\"trained_tokens\":%s,\"error\":null,"
            "\"user_provided_suffix\":null,\"seed\":7,\"estimated_finish\":null,\"integrations\":[],\"metadata\":%s,"
            "\"method\":{\"type\":\"supervised\",\"supervised\":{\"hyperparameters\":{\"n_epochs\":4,\"batch_size\":8,"
            "\"learning_rate_multiplier\":0.1}}}}",
            number, is_over ? "1700003600" : "null", is_over ? "\"ada:ft-benchmark:scripts\"" : "null",
            is_over ? "\"file-0000000002\"" : "", is_over ? "succeeded" : "validating_files", is_over ? "5768" : "null",
            metadata);
    return sprintf(out,
        "{\"training_type\":{\"type\":\"Full\"},\"training_method\":{\"method\":\"sft\",\"train_on_inputs\":\"auto\"},"
        "\"n_evals\":0,\"n_checkpoints\":1,\"id\":\"ft-%010ld\",\"status\":\"%s\",\"created_at\":"
        "\"2023-11-14T22:13:20.000Z\",\"updated_at\":\"2023-11-14T23:13:20.000Z\",\"user_id\":\"user-benchmark\","
        "\"owner_address\":\"\",\"model\":\"ada\",\"model_output_name\":\"benchmark/ada-scripts\","
        "\"adapter_output_name\":null,\"training_file\":\"file-0000000001\",\"validation_file\":\"\",\"n_epochs\":4,"
        "\"batch_size\":8,\"learning_rate\":0.0001,\"suffix\":\"\",\"random_seed\":7,\"token_count\":5768,"
        "\"total_price\":0,\"epochs_completed\":0,\"progress\":{\"estimate_available\":false,\"seconds_remaining\":0},"
        "\"events\":[]}",
        number, is_over ? "completed" : "pending");
}

static void build_together_list(void) {
    char *out = together_list = malloc(64 + jobs * 1024);
    out += sprintf(out, "{\"data\":[");
    for (long number = 1; number <= jobs; number++) {
        if (number > 1) *out++ = ',';
        out += write_dialect_job(out, TOGETHER, number, !active, "");
    }
    out += sprintf(out, "]}");
    together_list_size = out - together_list;
}

/* One page of the list, the newest job first. Nothing follows it on its connection before it is sent. */
static char *build_page(struct connection *c, long *size) {
    char *out = c->page = malloc(128 + c->limit * 2048);
    long number = c->after ? c->after - 1 : jobs, last = number - c->limit + 1;
    out += sprintf(out, "{\"object\":\"list\",\"data\":[");
    for (int comma = 0; number >= 1 && number >= last; number--, comma = 1) {
        if (comma) *out++ = ',';
        out += write_dialect_job(out, JOBS, number, !active, "null");
    }
    out += sprintf(out, "],\"has_more\":%s}", last > 1 ? "true" : "false");
    *size = out - c->page;
    return c->page;
}

static void build_list(long count) {
    /* A list that is still being sent stays as it is, and is never freed: that is seldom. */
    if (!list_readers) free(list);
    char *out = list = malloc(64 + count * 1536);
    out += sprintf(out, "{\"object\":\"list\",\"data\":[");
    for (long number = 1; number <= count; number++) {
        if (number > 1) *out++ = ',';
        out += write_job(out, number, is_over(number), 0);
    }
    out += sprintf(out, "]}");
    list_size = out - list;
}

/* The whole body of a stream that is sent at once, its chunks' frames included. */
static void build_stream(void) {
    long most = (chunk > 512 ? chunk : 512) + 512, used = 0;
    char *text = malloc(most), *out = stream = malloc(events * 192 + 4096);
    for (long number = 0; number <= events; number++) {
        if (number < events) {
            used += sprintf(text + used, "data: ");
            used += write_event(text + used, number);
            used += sprintf(text + used, "\n\n");
        } else used += sprintf(text + used, "data: [DONE]\n\n");
        if (used >= chunk || number == events) {
            out += sprintf(out, "%lx\r\n", used);
            memcpy(out, text, used);
            out += used;
            out += sprintf(out, "\r\n");
            used = 0;
        }
    }
    out += sprintf(out, "0\r\n\r\n");
    stream_size = out - stream;
    free(text);
}

static void drop(struct connection *c) {
    for (int i = 0; i < held_count; i++)
        if (held[i] == c) held[i] = held[--held_count];
    if (c->reads_list) list_readers--;
    if (c->next_at) {
        paced[c->place] = paced[--paced_count];
        paced[c->place]->place = c->place;
    }
    close(c->fd);
    free(c->page);
    free(c);
}

/* Send what is waiting; 0 if the connection is gone. */
static int flush(struct connection *c) {
    while (c->out_sent < c->out_size || c->body_left) {
        int is_head = c->out_sent < c->out_size;
        const char *from = is_head ? c->out + c->out_sent : c->body + c->body_at;
        long size = is_head ? c->out_size - c->out_sent : c->period - c->body_at;
        if (!is_head && size > c->body_left) size = c->body_left;
        ssize_t sent = send(c->fd, from, size, MSG_NOSIGNAL | (is_head && c->body_left ? MSG_MORE : 0));
        if (sent < 0 && errno == EAGAIN) {
            if (!c->waits_for_write) {
                struct epoll_event wish = {EPOLLIN | EPOLLOUT, {.ptr = c}};
                epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wish);
                c->waits_for_write = 1;
            }
            return 1;
        }
        if (sent < 0) return drop(c), 0;
        if (is_head) c->out_sent += sent;
        else {
            c->body_left -= sent;
            c->body_at = (c->body_at + sent) % c->period;
        }
    }
    c->out_size = c->out_sent = 0;
    free(c->page), c->page = NULL;
    if (c->reads_list) c->reads_list = 0, list_readers--;
    if (c->waits_for_write) {
        struct epoll_event wish = {EPOLLIN, {.ptr = c}};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &wish);
        c->waits_for_write = 0;
    }
    if (c->closes && !c->next_at) return drop(c), 0;
    return 1;
}

static void add_body(struct connection *c, const char *type, const char *body, long size) {
    c->out_size += sprintf(c->out + c->out_size,
        "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nDate: Tue, 14 Nov 2023 22:13:20 GMT\r\nx-request-id: req-benchmark\r\n"
        "Content-Length: %ld\r\n\r\n", type, size);
    if (body) c->out_size += sprintf(c->out + c->out_size, "%s", body);
}

static void add_long_body(struct connection *c, const char *body, long period, long size) {
    c->body = body;
    c->period = period;
    c->body_left = size;
    c->body_at = 0;
}

static void add_chunk(struct connection *c, const char *text) {
    c->out_size += sprintf(c->out + c->out_size, "%lx\r\n%s\r\n", (long)strlen(text), text);
}

/* Send the next event of a paced stream, and its end after the last. */
static void tick(struct connection *c, long long now) {
    char text[512], event[256];
    if (c->out_size > 4096) c->out_size = c->out_sent = 0; /* nobody reads */
    write_event(event, events - c->events_left);
    sprintf(text, "data: %s\n\n", event);
    add_chunk(c, text);
    c->next_at += every;
    if (c->next_at < now) c->next_at = now + 1;
    if (--c->events_left <= 0) {
        add_chunk(c, "data: [DONE]\n\n");
        c->out_size += sprintf(c->out + c->out_size, "0\r\n\r\n");
        c->next_at = 0;
        paced[c->place] = paced[--paced_count];
        paced[c->place]->place = c->place;
    }
    flush(c);
}

static void begin_stream(struct connection *c) {
    c->out_size += sprintf(c->out + c->out_size,
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    if (batch && !is_over(c->number)) {
        char text[512], event[256];
        write_event(event, 0);
        sprintf(text, "data: %s\n\n", event);
        add_chunk(c, text);
        if (held_count == held_room) held = realloc(held, (held_room = 2 * held_room + 64) * sizeof *held);
        held[held_count++] = c;
    } else if (batch) {
        add_chunk(c, "data: [DONE]\n\n");
        c->out_size += sprintf(c->out + c->out_size, "0\r\n\r\n");
    } else if (every) {
        if (paced_count == paced_room) paced = realloc(paced, (paced_room = 2 * paced_room + 64) * sizeof *paced);
        c->place = paced_count;
        paced[paced_count++] = c;
        c->events_left = events;
        c->next_at = now_ms() + every;
    } else add_long_body(c, stream, stream_size, stream_size);
}

/* A job of the batch was created: end the streams of those that are over by that. */
static void end_held(void) {
    if (created == batch) build_list(created);
    for (int i = held_count - 1; i >= 0; i--) {
        struct connection *c = held[i];
        if (!is_over(c->number)) continue;
        held[i] = held[--held_count];
        add_chunk(c, "data: [DONE]\n\n");
        c->out_size += sprintf(c->out + c->out_size, "0\r\n\r\n");
        flush(c);
    }
}

static int reply(struct connection *c) {
    char text[4096];
    const char *body;
    long size;
    switch (c->route) {
    case CREATE:
        if (c->dialect) write_dialect_job(text, c->dialect, ++created, 0, *c->metadata ? c->metadata : "null");
        else write_job(text, ++created, 0, 1);
        add_body(c, "application/json", text, strlen(text));
        break;
    case LIST:
        if (c->dialect) {
            if (c->dialect == JOBS) body = build_page(c, &size);
            else body = together_list, size = together_list_size;
            add_body(c, "application/json", NULL, size);
            add_long_body(c, body, size, size);
            break;
        }
        if (batch && created < batch) build_list(created);
        add_body(c, "application/json", NULL, list_size);
        add_long_body(c, list, list_size, list_size);
        c->reads_list = 1;
        list_readers++;
        break;
    case RETRIEVE:
        write_job(text, c->number, !batch || is_over(c->number), 1);
        add_body(c, "application/json", text, strlen(text));
        break;
    case EVENTS:
        begin_stream(c);
        break;
    case UPLOAD:
    case FILE_INFO:
        text[write_file(text, 1, "fine-tune", "train.jsonl")] = 0;
        add_body(c, "application/json", text, strlen(text));
        break;
    case DOWNLOAD:
        add_body(c, "application/octet-stream", NULL, bytes);
        add_long_body(c, filler, filler_size, bytes);
        break;
    default:
        c->out_size += sprintf(c->out + c->out_size, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    }
    c->part = HEAD;
    c->head_size = 0;
    int is_create = c->route == CREATE, is_there = flush(c);
    if (is_create && batch && (lasts || created >= batch)) end_held();
    return is_there;
}

static enum route route_of(const char *method, char *path, long *number, struct connection *c) {
    int posts = !strcmp(method, "POST");
    char *query = strchr(path, '?'), *after, *limit;
    c->dialect = strstr(path, "/fine_tuning/jobs") ? JOBS : strstr(path, "/together/") ? TOGETHER : FINE_TUNES;
    if (c->dialect == JOBS) {
        after = query ? strstr(query, "after=ftjob-") : NULL;
        limit = query ? strstr(query, "limit=") : NULL;
        c->after = after ? atol(after + strlen("after=ftjob-")) : 0;
        c->limit = limit ? atol(limit + strlen("limit=")) : 20;
        return posts ? CREATE : LIST;
    }
    if (query) *query = 0;
    char *rest = strstr(path, "/fine-tunes");
    if (rest) {
        rest += strlen("/fine-tunes");
        if (!*rest) return posts ? CREATE : LIST;
        if (!strncmp(rest, "/ft-", 4)) *number = atol(rest + 4);
        return strstr(rest, "/events") ? EVENTS : RETRIEVE;
    }
    rest = strstr(path, "/files");
    if (!rest) return UNKNOWN;
    if (strstr(rest, "/content")) return DOWNLOAD;
    return posts ? UPLOAD : FILE_INFO;
}

/* Keep the metadata of a job to create; it comes in one piece, and holds no object. */
static void keep_metadata(struct connection *c, const char *data, long size) {
    static const char name[] = "\"metadata\":";
    const char *from = memmem(data, size, name, strlen(name)), *to;
    if (!from) return;
    from += strlen(name);
    from += *from == ' ';
    to = memchr(from, '}', data + size - from);
    if (to && *from == '{' && to - from < (long)sizeof c->metadata - 1) {
        memcpy(c->metadata, from, to + 1 - from);
        c->metadata[to + 1 - from] = 0;
    }
}

/* Read a request's head, which is whole; 0 if the connection is gone. */
static int begin(struct connection *c) {
    char method[16], path[2048];
    long number = 0, length = 0;
    int is_chunked = 0;
    if (sscanf(c->head, "%15s %2047s", method, path) != 2) return drop(c), 0;
    c->route = route_of(method, path, &number, c);
    c->number = number;
    for (char *line = strstr(c->head, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) length = atol(line + 15);
        else if (!strncasecmp(line, "transfer-encoding:", 18)) is_chunked = 1;
        else if (!strncasecmp(line, "connection: close", 17)) c->closes = 1;
        else if (!strncasecmp(line, "expect:", 7) && send(c->fd, "HTTP/1.1 100 Continue\r\n\r\n", 25, MSG_NOSIGNAL) < 0)
            return drop(c), 0;
        line -= 2;
    }
    if (is_chunked) c->part = CHUNK_SIZE, c->line_size = 0;
    else if (length) c->part = LENGTH, c->left = length, *c->metadata = 0;
    else return reply(c);
    return 1;
}

/* Take what came; 0 if the connection is gone. */
static int feed(struct connection *c, const char *data, long size) {
    while (size) {
        if (c->part == HEAD) {
            long room = sizeof c->head - 1 - c->head_size, take = size < room ? size : room;
            memcpy(c->head + c->head_size, data, take);
            c->head[c->head_size + take] = 0;
            char *end = strstr(c->head, "\r\n\r\n");
            if (!end && take < size) return drop(c), 0;
            if (!end) return c->head_size += take, 1;
            take = end + 4 - c->head - c->head_size;
            end[2] = 0;
            data += take;
            size -= take;
            if (!begin(c)) return 0;
        } else if (c->part == LENGTH || c->part == CHUNK_DATA) {
            long take = size < c->left ? size : c->left;
            if (c->dialect == JOBS) keep_metadata(c, data, take);
            data += take;
            size -= take;
            if ((c->left -= take)) continue;
            if (c->part == CHUNK_DATA) c->part = CHUNK_END, c->left = 2;
            else if (!reply(c)) return 0;
        } else if (c->part == CHUNK_END) {
            data++, size--;
            if (!--c->left) c->part = CHUNK_SIZE, c->line_size = 0;
        } else { /* a chunk's size, or a line of the trailer */
            char byte = *data++;
            size--;
            if (byte != '\n') {
                if (byte != '\r' && c->line_size < (int)sizeof c->line - 1) c->line[c->line_size++] = byte;
                continue;
            }
            c->line[c->line_size] = 0;
            int is_empty = !c->line_size;
            c->line_size = 0;
            if (c->part == TRAILER) {
                if (is_empty && !reply(c)) return 0;
            } else if ((c->left = strtol(c->line, NULL, 16))) c->part = CHUNK_DATA;
            else c->part = TRAILER;
        }
    }
    return 1;
}

int main(int count, char **options) {
    for (int i = 1; i < count; i++) {
        sscanf(options[i], "jobs=%ld", &jobs);
        sscanf(options[i], "active=%ld", &active);
        sscanf(options[i], "batch=%ld", &batch);
        sscanf(options[i], "lasts=%ld", &lasts);
        sscanf(options[i], "events=%ld", &events);
        sscanf(options[i], "chunk=%ld", &chunk);
        sscanf(options[i], "every=%ld", &every);
        sscanf(options[i], "bytes=%ld", &bytes);
    }
    static char received[1 << 20];
    filler = malloc(filler_size);
    for (long i = 0; i < filler_size; i++) filler[i] = i % 64 == 63 ? '\n' : 'a' + i % 23;
    build_list(jobs);
    build_together_list();
    build_stream();

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) return perror("listen"), 1;
    getsockname(listener, (struct sockaddr *)&address, &address_size);
    poller = epoll_create1(0);
    struct epoll_event wish = {EPOLLIN, {.ptr = &listener}}, input = {EPOLLIN, {.ptr = NULL}}, ready[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &wish);
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &input);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    for (;;) {
        long long now = now_ms(), wait = -1;
        for (int i = 0; i < paced_count; i++) {
            if (paced[i]->next_at <= now) {
                tick(paced[i], now);
                wait = 0; /* their order has changed: look again */
            } else if (wait < 0 || paced[i]->next_at - now < wait) wait = paced[i]->next_at - now;
        }
        int found = epoll_wait(poller, ready, 256, (int)wait);
        for (int i = 0; i < found; i++) {
            struct connection *c = ready[i].data.ptr;
            if (!c) return 0;
            if ((void *)c == (void *)&listener) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                c = calloc(1, sizeof *c);
                c->fd = fd;
                struct epoll_event first = {EPOLLIN, {.ptr = c}};
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &first);
                continue;
            }
            if (ready[i].events & EPOLLOUT && !flush(c)) continue;
            if (!(ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            ssize_t size = recv(c->fd, received, sizeof received, 0);
            if (size > 0) feed(c, received, size);
            else if (size == 0 || errno != EAGAIN) drop(c);
        }
    }
}
