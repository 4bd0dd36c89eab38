/* load: plays the MTA's side of the milter protocol (version 6), as fast as one can.
 *
 * load -s unix:PATH|inet:PORT@ADDRESS [-c CONNECTIONS] [-k MESSAGES_A_CONNECTION]
 *      [-t SECONDS] [-n MESSAGES] [-f SENDER] [-r RECIPIENT]... [-i CLIENT_IP] [MESSAGE_FILE]...
 *
 * It ends after SECONDS (default 5) or MESSAGES, whatever comes first. The message files (CRLF
 * line ends) are sent in turn. A recipient may hold one "%ld": a number that no other message has.
 * What a milter says it does not want is not sent, what it does not answer is not waited for.
 *
 * It prints one line of JSON: messages, seconds, latencies of a whole message (MAIL to the last
 * answer) in milliseconds, the last answer of each message by kind, edits asked for, errors.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 65535 /* of a body: what Postfix and Sendmail send at a time */
#define MAX_RECIPIENTS 1000

/* Protocol steps a milter can turn off (SMFIP_*): sent not at all, or not answered. */
enum {
  NO_CONNECT = 0x1, NO_HELO = 0x2, NO_MAIL = 0x4, NO_RCPT = 0x8, NO_BODY = 0x10, NO_HDRS = 0x20,
  NO_EOH = 0x40, NR_HDR = 0x80, NO_DATA = 0x200, SKIP = 0x400, NR_CONN = 0x1000,
  NR_HELO = 0x2000, NR_MAIL = 0x4000, NR_RCPT = 0x8000, NR_DATA = 0x10000, NR_EOH = 0x40000,
  NR_BODY = 0x80000, HDR_LEADSPC = 0x100000,
  ALL_STEPS = 0x1fffff, ALL_ACTIONS = 0x1ff
};

struct buffer {
  char *data;
  size_t used, size;
};

struct message {
  struct buffer header[2]; /* the L packets; [1]: values with their leading space */
  int fields;
  struct buffer body; /* the B packets */
};

struct connection {
  int fd;
  uint32_t steps;
  struct buffer out;
  unsigned char in[1 << 18];
  size_t start, end;
};

static struct {
  const char *socket, *sender, *ip, *recipients[MAX_RECIPIENTS];
  int connections, per_connection, recipient_count, message_count;
  long messages;
  double seconds;
  struct message *content;
} option = {.sender = "<alice@bank.example>", .ip = "192.0.2.10", .connections = 8,
            .per_connection = 50, .messages = 1L << 40, .seconds = 5};

static atomic_long next_message, answers[256], edits[256], errors;
static double deadline;

struct latencies {
  double *ms;
  size_t count, size;
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void die(const char *what) {
  perror(what);
  exit(2);
}

static void append(struct buffer *b, const void *data, size_t length) {
  if (b->used + length > b->size) {
    b->size = 2 * (b->used + length);
    b->data = realloc(b->data, b->size);
    if (!b->data) die("realloc");
  }
  memcpy(b->data + b->used, data, length);
  b->used += length;
}

/* A packet: length, command, data. */
static void packet(struct buffer *b, char command, const void *data, size_t length) {
  uint32_t n = htonl(length + 1);
  append(b, &n, 4);
  append(b, &command, 1);
  append(b, data, length);
}

static void text(struct buffer *b, char command, const char *s) {
  packet(b, command, s, strlen(s) + 1);
}

/* Macros of a stage: name and value. */
static void macros(struct buffer *b, char stage, const char *name, const char *value) {
  char data[512];
  int n = snprintf(data, sizeof data, "%c%s%c%s", stage, name, 0, value) + 1;
  packet(b, 'D', data, n);
}

static int flush(struct connection *c) {
  for (size_t done = 0; done < c->out.used;) {
    ssize_t n = send(c->fd, c->out.data + done, c->out.used - done, MSG_NOSIGNAL);
    if (n <= 0) return -1;
    done += n;
  }
  c->out.used = 0;
  return 0;
}

/* The next packet that is an answer or an edit: its command, or -1. */
static int receive(struct connection *c, unsigned char **data, uint32_t *length) {
  for (;;) {
    if (c->end - c->start >= 5) {
      uint32_t n;
      memcpy(&n, c->in + c->start, 4);
      n = ntohl(n);
      if (n < 1 || n > sizeof c->in - 4) return -1;
      if (c->end - c->start >= 4 + (size_t)n) {
        unsigned char command = c->in[c->start + 4];
        *data = c->in + c->start + 5;
        *length = n - 1;
        c->start += 4 + n;
        if (command != 'p') return command; /* 'p': still at work */
        continue;
      }
    }
    memmove(c->in, c->in + c->start, c->end - c->start);
    c->end -= c->start;
    c->start = 0;
    ssize_t k = recv(c->fd, c->in + c->end, sizeof c->in - c->end, 0);
    if (k <= 0) return -1;
    c->end += k;
  }
}

static int answer(struct connection *c) {
  unsigned char *data;
  uint32_t length;
  int kind = flush(c) ? -1 : receive(c, &data, &length);
  return kind == 'y' && length ? data[0] : kind; /* a reply of its own: '4' or '5' */
}

static int dial(void) {
  int fd;
  if (!strncmp(option.socket, "unix:", 5)) {
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strncpy(a.sun_path, option.socket + 5, sizeof a.sun_path - 1);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(fd, (void *)&a, sizeof a) ? (close(fd), -1) : fd;
  }
  char host[64];
  int port, yes = 1;
  if (sscanf(option.socket, "inet:%d@%63s", &port, host) != 2) return -1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, host, &a.sin_addr);
  fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes); /* Postfix sends whole packets */
  return connect(fd, (void *)&a, sizeof a) ? (close(fd), -1) : fd;
}

static int open_session(struct connection *c) {
  uint32_t offer[3] = {htonl(6), htonl(ALL_ACTIONS), htonl(ALL_STEPS)}, length, steps;
  unsigned char *data;
  c->out.used = c->start = c->end = 0;
  if ((c->fd = dial()) < 0) return -1;
  packet(&c->out, 'O', offer, sizeof offer);
  if (flush(c) || receive(c, &data, &length) != 'O' || length < 12) return -1;
  memcpy(&steps, data + 8, 4);
  c->steps = ntohl(steps);
  macros(&c->out, 'C', "v", "Postfix 3.7.11");
  if (!(c->steps & NO_CONNECT)) {
    char who[128];
    int n = snprintf(who, sizeof who, "client.example%c4%c%c%s", 0, 0x86, 0x87, option.ip) + 1;
    packet(&c->out, 'C', who, n);
    if (!(c->steps & NR_CONN) && answer(c) != 'c') return -1;
  }
  if (!(c->steps & NO_HELO)) {
    text(&c->out, 'H', "client.example");
    if (!(c->steps & NR_HELO) && answer(c) != 'c') return -1;
  }
  return 0;
}

/* How many of the recipients are accepted; -1 at the end of the connection. */
static int envelope(struct connection *c, long number, int *last) {
  int accepted = 0;
  macros(&c->out, 'M', "i", "4Tz8Qk1x2y");
  if (!(c->steps & NO_MAIL)) {
    text(&c->out, 'M', option.sender);
    if (!(c->steps & NR_MAIL) && (*last = answer(c)) != 'c') return *last < 0 ? -1 : 0;
  }
  for (int i = 0; i < option.recipient_count; i++) {
    char recipient[512];
    snprintf(recipient, sizeof recipient, option.recipients[i], number);
    macros(&c->out, 'R', "i", "4Tz8Qk1x2y");
    text(&c->out, 'R', recipient);
    *last = c->steps & NR_RCPT ? 'c' : answer(c);
    if (*last < 0) return -1;
    accepted += *last == 'c';
  }
  return accepted;
}

static int content(struct connection *c, const struct message *m) {
  struct buffer header = m->header[c->steps & HDR_LEADSPC ? 1 : 0];
  if (!(c->steps & NO_DATA)) {
    packet(&c->out, 'T', "", 0);
    if (!(c->steps & NR_DATA) && answer(c) != 'c') return -1;
  }
  if (!(c->steps & NO_HDRS)) {
    append(&c->out, header.data, header.used);
    for (int i = 0; i < m->fields && !(c->steps & NR_HDR); i++)
      if (answer(c) != 'c') return -1;
  }
  if (!(c->steps & NO_EOH)) {
    packet(&c->out, 'N', "", 0);
    if (!(c->steps & NR_EOH) && answer(c) != 'c') return -1;
  }
  if (c->steps & NO_BODY) return 0;
  for (size_t at = 0; at < m->body.used;) {
    uint32_t length;
    memcpy(&length, m->body.data + at, 4);
    length = ntohl(length) + 4;
    append(&c->out, m->body.data + at, length);
    at += length;
    int kind = c->steps & NR_BODY ? 'c' : answer(c);
    if (kind == 's') break;
    if (kind != 'c') return -1;
  }
  return 0;
}

static int end_of_message(struct connection *c) {
  unsigned char *data;
  uint32_t length;
  int kind;
  macros(&c->out, 'E', "i", "4Tz8Qk1x2y");
  packet(&c->out, 'E', "", 0);
  if (flush(c)) return -1;
  while ((kind = receive(c, &data, &length)) >= 0) {
    if (kind == 'y') return length ? data[0] : -1;
    if (strchr("acdrt", kind)) return kind;
    edits[kind]++;
  }
  return -1;
}

/* The last answer to a message, or -1. */
static int transaction(struct connection *c, long number) {
  int last = 'c', accepted = envelope(c, number, &last);
  if (accepted < 0) return -1;
  if (!accepted || !option.message_count) { /* as a client that gives up: RSET */
    packet(&c->out, 'A', "", 0);
    return last;
  }
  if (content(c, &option.content[number % option.message_count])) return -1;
  return end_of_message(c);
}

static void hang_up(struct connection *c) {
  packet(&c->out, 'Q', "", 0);
  flush(c);
  close(c->fd);
  c->fd = -1;
}

static void note(struct latencies *l, double ms) {
  if (l->count == l->size) {
    l->size = l->size ? 2 * l->size : 4096;
    l->ms = realloc(l->ms, l->size * sizeof *l->ms);
    if (!l->ms) die("realloc");
  }
  l->ms[l->count++] = ms;
}

static void *client(void *result) {
  struct connection *c = calloc(1, sizeof *c);
  int left = 0;
  if (!c) die("calloc");
  c->fd = -1;
  for (;;) {
    double start = now();
    long number = next_message++;
    if (number >= option.messages || start >= deadline) break;
    if (left == 0) {
      if (c->fd >= 0) hang_up(c);
      left = open_session(c) ? 0 : option.per_connection;
    }
    int last = left ? transaction(c, number) : -1;
    if (last < 0) {
      errors++;
      if (c->fd >= 0) close(c->fd);
      c->fd = -1;
      left = 0;
      usleep(1000);
      continue;
    }
    left--;
    answers[last]++;
    note(result, 1e3 * (now() - start));
  }
  if (c->fd >= 0) hang_up(c);
  free(c->out.data);
  free(c);
  return NULL;
}

/* A header field as two L packets, its line end dropped, folds as LF. */
static void add_field(struct message *m, const char *line, size_t length) {
  const char *colon = memchr(line, ':', length);
  char *data = malloc(length + 2);
  if (!colon || !data) die("a header field without a colon");
  for (int exact = 0; exact < 2; exact++) {
    size_t n = colon - line;
    memcpy(data, line, n);
    data[n++] = 0;
    for (const char *p = colon + 1 + (!exact && colon[1] == ' '); p < line + length; p++)
      if (*p != '\r') data[n++] = *p;
    while (data[n - 1] == '\n') n--;
    data[n++] = 0;
    packet(&m->header[exact], 'L', data, n);
  }
  m->fields++;
  free(data);
}

static void read_message(struct message *m, const char *path) {
  FILE *file = fopen(path, "rb");
  struct buffer raw = {0};
  char piece[CHUNK];
  if (!file) die(path);
  for (size_t n; (n = fread(piece, 1, sizeof piece, file)) > 0;) append(&raw, piece, n);
  fclose(file);
  append(&raw, "", 1);
  const char *at = raw.data, *end = raw.data + raw.used - 1;
  while (at < end && strncmp(at, "\r\n", 2)) {
    const char *next = at;
    do {
      next = strstr(next, "\r\n");
      if (!next) die("a header without end");
      next += 2;
    } while (*next == ' ' || *next == '\t');
    add_field(m, at, next - at);
    at = next;
  }
  for (at += 2; at < end; at += CHUNK)
    packet(&m->body, 'B', at, end - at < CHUNK ? end - at : CHUNK);
  free(raw.data);
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void show_counts(const char *name, atomic_long *counts) {
  const char *comma = "";
  printf(", \"%s\": {", name);
  for (int i = 0; i < 256; i++)
    if (counts[i]) {
      printf("%s\"%c\": %ld", comma, i, counts[i]);
      comma = ", ";
    }
  printf("}");
}

static void report(struct latencies *found, double seconds) {
  struct latencies all = {0};
  for (int i = 0; i < option.connections; i++)
    for (size_t k = 0; k < found[i].count; k++) note(&all, found[i].ms[k]);
  qsort(all.ms, all.count, sizeof *all.ms, ascending);
  double p50 = 0, p99 = 0, max = 0;
  if (all.count) {
    p50 = all.ms[all.count / 2];
    p99 = all.ms[all.count * 99 / 100];
    max = all.ms[all.count - 1];
  }
  printf("{\"messages\": %zu, \"seconds\": %.4f, \"p50\": %.4f, \"p99\": %.4f, \"max\": %.4f",
         all.count, seconds, p50, p99, max);
  show_counts("answers", answers);
  show_counts("edits", edits);
  printf(", \"errors\": %ld}\n", errors);
}

static void read_options(int count, char **words) {
  int letter;
  while ((letter = getopt(count, words, "s:c:k:t:n:f:r:i:")) > 0) switch (letter) {
      case 's': option.socket = optarg; break;
      case 'c': option.connections = atoi(optarg); break;
      case 'k': option.per_connection = atoi(optarg); break;
      case 't': option.seconds = atof(optarg); break;
      case 'n': option.messages = atol(optarg); break;
      case 'f': option.sender = optarg; break;
      case 'i': option.ip = optarg; break;
      case 'r':
        if (option.recipient_count < MAX_RECIPIENTS)
          option.recipients[option.recipient_count++] = optarg;
        break;
      default: exit(2);
    }
  if (!option.socket) {
    fprintf(stderr, "load: -s is needed\n");
    exit(2);
  }
  if (!option.recipient_count) option.recipients[option.recipient_count++] = "<sales@example.com>";
  option.message_count = count - optind;
  option.content = calloc(option.message_count + 1, sizeof *option.content);
  for (int i = 0; i < option.message_count; i++)
    read_message(&option.content[i], words[optind + i]);
}

int main(int count, char **words) {
  read_options(count, words);
  pthread_t *threads = calloc(option.connections, sizeof *threads);
  struct latencies *found = calloc(option.connections, sizeof *found);
  if (!threads || !found) die("calloc");
  double start = now();
  deadline = start + option.seconds;
  for (int i = 0; i < option.connections; i++)
    if (pthread_create(&threads[i], NULL, client, &found[i])) die("pthread_create");
  for (int i = 0; i < option.connections; i++) pthread_join(threads[i], NULL);
  report(found, now() - start);
  return errors != 0;
}
