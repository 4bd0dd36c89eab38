/*
 * Lets a real Sendmail run privately on a machine that has no syslog and no DNS (LD_PRELOAD).
 *
 * syslog()      appends to the file SHIM_LOG: containers have no /dev/log.
 * gethostname() says SHIM_HOSTNAME.
 * Host names    SHIM_HOSTS ("name=address,name=address") is all that exists, both ways, and no DNS
 *               query leaves the machine. Without this a start sleeps 60 seconds ("My unqualified
 *               host name unknown; sleeping for retry").
 * accept()      on port SHIM_OUTSIDE_PORT shows the IPv4 address that stands in SHIM_CLIENT_FILE as the
 *               client's: Sendmail trusts 127.0.0.1 (it relays for it) and has no XCLIENT.
 *
 * The environment is read once, when the library is loaded: Sendmail empties it soon after.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char log_path[1024], host_name[256], known_hosts[4096], client_file[1024], outside_port[16];

static void keep(char *into, size_t size, const char *variable)
{
    const char *value = getenv(variable);
    snprintf(into, size, "%s", value ? value : "");
}

__attribute__((constructor)) static void read_environment(void)
{
    keep(log_path, sizeof log_path, "SHIM_LOG");
    keep(host_name, sizeof host_name, "SHIM_HOSTNAME");
    keep(known_hosts, sizeof known_hosts, "SHIM_HOSTS");
    keep(client_file, sizeof client_file, "SHIM_CLIENT_FILE");
    keep(outside_port, sizeof outside_port, "SHIM_OUTSIDE_PORT");
}

/* ---- syslog ---- */

static void write_line(const char *format, va_list arguments)
{
    char line[8192];
    struct timeval now;
    struct tm parts;
    int length, room, fd;

    gettimeofday(&now, NULL);
    localtime_r(&now.tv_sec, &parts);
    length = (int)strftime(line, sizeof line, "%H:%M:%S", &parts);
    length += snprintf(line + length, 64, ".%03d [%d] ", (int)(now.tv_usec / 1000), (int)getpid());
    room = (int)sizeof line - length - 2;
    int written = vsnprintf(line + length, (size_t)room, format, arguments);
    if (written < 0)
        return;
    length += written < room ? written : room - 1;
    if (line[length - 1] != '\n')
        line[length++] = '\n';
    fd = open(log_path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    /* one write() with O_APPEND: lines of several processes do not mix */
    if (write(fd, line, (size_t)length) < 0)
        perror(log_path);
    close(fd);
}

void vsyslog(int priority, const char *format, va_list arguments)
{
    (void)priority;
    write_line(format, arguments);
}

void syslog(int priority, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsyslog(priority, format, arguments);
    va_end(arguments);
}

/* what the compiler makes of syslog() under _FORTIFY_SOURCE */
void __syslog_chk(int priority, int flag, const char *format, ...)
{
    va_list arguments;
    (void)flag;
    va_start(arguments, format);
    vsyslog(priority, format, arguments);
    va_end(arguments);
}

void __vsyslog_chk(int priority, int flag, const char *format, va_list arguments)
{
    (void)flag;
    vsyslog(priority, format, arguments);
}

void openlog(const char *ident, int option, int facility)
{
    (void)ident, (void)option, (void)facility;
}

void closelog(void)
{
}

/* ---- names ---- */

int gethostname(char *name, size_t size)
{
    snprintf(name, size, "%s", host_name);
    return 0;
}

/* Find the pair with this name or, if name is NULL, with this address; return whether there is one. */
static int find_host(const char *name, struct in_addr *address, char *found, size_t size)
{
    char hosts[sizeof known_hosts], *rest = hosts, *host;
    struct in_addr candidate;

    snprintf(hosts, sizeof hosts, "%s", known_hosts);
    while ((host = strsep(&rest, ",")) != NULL) {
        char *equals = strchr(host, '=');
        if (equals == NULL || inet_pton(AF_INET, equals + 1, &candidate) != 1)
            continue;
        *equals = '\0';
        if (name ? strcasecmp(name, host) != 0 : candidate.s_addr != address->s_addr)
            continue;
        *address = candidate;
        snprintf(found, size, "%s", host);
        return 1;
    }
    return 0;
}

static struct hostent *answer(const char *name, in_addr_t address)
{
    static struct hostent entry;
    static char entry_name[256];
    static in_addr_t entry_address;
    static char *addresses[2], *aliases[1];

    snprintf(entry_name, sizeof entry_name, "%s", name);
    entry_address = address;
    addresses[0] = (char *)&entry_address;
    entry = (struct hostent){entry_name, aliases, AF_INET, sizeof entry_address, addresses};
    return &entry;
}

struct hostent *gethostbyname2(const char *name, int family)
{
    struct in_addr address;
    char bare[256], found[256];
    size_t length;

    snprintf(bare, sizeof bare, "%s", name);
    length = strlen(bare);
    if (length > 0 && bare[length - 1] == '.')
        bare[length - 1] = '\0';
    if (family == AF_INET && inet_pton(AF_INET, bare, &address) == 1)
        return answer(bare, address.s_addr);
    if (family == AF_INET && find_host(bare, &address, found, sizeof found))
        return answer(found, address.s_addr);
    h_errno = HOST_NOT_FOUND;
    return NULL;
}

struct hostent *gethostbyname(const char *name)
{
    return gethostbyname2(name, AF_INET);
}

struct hostent *gethostbyaddr(const void *bytes, socklen_t length, int family)
{
    struct in_addr address;
    char found[256];

    if (family == AF_INET && length == sizeof address) {
        memcpy(&address, bytes, sizeof address);
        if (find_host(NULL, &address, found, sizeof found))
            return answer(found, address.s_addr);
    }
    h_errno = HOST_NOT_FOUND;
    return NULL;
}

int res_search(const char *name, int class, int type, unsigned char *into, int size)
{
    (void)name, (void)class, (void)type, (void)into, (void)size;
    h_errno = HOST_NOT_FOUND;
    return -1;
}

int res_query(const char *name, int class, int type, unsigned char *into, int size)
{
    return res_search(name, class, type, into, size);
}

int res_querydomain(const char *name, const char *domain, int class, int type,
                    unsigned char *into, int size)
{
    (void)domain;
    return res_search(name, class, type, into, size);
}

/* ---- the outside client ---- */

static void disguise(int fd, struct sockaddr *peer)
{
    struct sockaddr_in local, *client = (struct sockaddr_in *)peer;
    socklen_t length = sizeof local;
    char text[64] = "";
    FILE *file;

    if (peer == NULL || peer->sa_family != AF_INET || *outside_port == '\0')
        return;
    if (getsockname(fd, (struct sockaddr *)&local, &length) < 0)
        return;
    if (ntohs(local.sin_port) != atoi(outside_port) || (file = fopen(client_file, "re")) == NULL)
        return;
    if (fgets(text, sizeof text, file) != NULL)
        text[strcspn(text, "\n")] = '\0';
    fclose(file);
    inet_pton(AF_INET, text, &client->sin_addr);
}

int accept(int listener, struct sockaddr *peer, socklen_t *length)
{
    int fd = accept4(listener, peer, length, 0);
    if (fd >= 0)
        disguise(fd, peer);
    return fd;
}

int getpeername(int fd, struct sockaddr *peer, socklen_t *length)
{
    int result = (int)syscall(SYS_getpeername, fd, peer, length);
    if (result == 0)
        disguise(fd, peer);
    return result;
}
