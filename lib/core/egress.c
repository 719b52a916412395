/* SPDX-License-Identifier: MIT */
#include "egress.h"
#include "../base/clock.h"
#include "sys.h"
#include <errno.h>
#include <linux/ethtool.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <time.h>

struct address_pair {
    uint8_t family; /* AF_INET (mapped addresses included) or AF_INET6 */
    uint8_t length;
    uint16_t zero; /* where padding would be: pairs are compared and hashed as bytes */
    uint8_t peer[16], local[16];
    uint32_t scope; /* the interface of a link-local peer */
    uint32_t mark;
};

struct cached_egress {
    struct address_pair key;
    time_t expires;
    struct sluice_egress egress;
};

/* Per thread, so that no lock is needed; direct-mapped, so that a flood of clients costs bounded memory. */
#define CACHE_SLOTS 64
static _Thread_local struct cached_egress cache[CACHE_SLOTS];

static void set_address(const struct sockaddr_storage *address, struct address_pair *pair, uint8_t *ret_bytes)
{
    if (address->ss_family == AF_INET) {
        pair->family = AF_INET;
        pair->length = 4;
        memcpy(ret_bytes, &((const struct sockaddr_in *)address)->sin_addr, 4);
        return;
    }
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)address;
    if (IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr)) {
        pair->family = AF_INET;
        pair->length = 4;
        memcpy(ret_bytes, in6->sin6_addr.s6_addr + 12, 4);
        return;
    }
    pair->family = AF_INET6;
    pair->length = 16;
    memcpy(ret_bytes, &in6->sin6_addr, 16);
    pair->scope = in6->sin6_scope_id;
}

static int read_addresses(int fd, struct address_pair *ret_pair)
{
    struct sockaddr_storage peer = {0}, local = {0};
    struct address_pair pair;
    memset(&pair, 0, sizeof pair);
    socklen_t size = sizeof peer;
    if (sys.getpeername(fd, (struct sockaddr *)&peer, &size) < 0)
        return -errno;
    size = sizeof local;
    if (sys.getsockname(fd, (struct sockaddr *)&local, &size) < 0)
        return -errno;
    if ((peer.ss_family != AF_INET && peer.ss_family != AF_INET6) || local.ss_family != peer.ss_family)
        return -EAFNOSUPPORT;
    set_address(&local, &pair, pair.local);
    set_address(&peer, &pair, pair.peer);
    size = sizeof pair.mark;
    if (sys.getsockopt(fd, SOL_SOCKET, SO_MARK, &pair.mark, &size) < 0)
        return -errno;
    *ret_pair = pair;
    return 0;
}

struct route_query {
    struct nlmsghdr header;
    struct rtmsg route;
    char attributes[96];
};

static void add_attribute(struct route_query *query, uint16_t type, const void *data, size_t size)
{
    struct rtattr *attribute = (struct rtattr *)((char *)query + NLMSG_ALIGN(query->header.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = (unsigned short)RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), data, size);
    query->header.nlmsg_len = (uint32_t)(NLMSG_ALIGN(query->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len));
}

static unsigned output_device(const char *reply, size_t size)
{
    const struct nlmsghdr *header = (const struct nlmsghdr *)reply;
    if (size < sizeof *header || !NLMSG_OK(header, (unsigned)size) || header->nlmsg_type != RTM_NEWROUTE)
        return 0;
    const struct rtmsg *route = NLMSG_DATA(header);
    const struct rtattr *attribute = RTM_RTA(route);
    size_t left = RTM_PAYLOAD(header);
    while (left >= sizeof *attribute && attribute->rta_len >= sizeof *attribute && attribute->rta_len <= left) {
        if (attribute->rta_type == RTA_OIF && RTA_PAYLOAD(attribute) >= sizeof(uint32_t)) {
            uint32_t index;
            memcpy(&index, RTA_DATA(attribute), sizeof index);
            return index;
        }
        size_t step = RTA_ALIGN(attribute->rta_len);
        left -= step < left ? step : left;
        attribute = (const struct rtattr *)((const char *)attribute + step);
    }
    return 0;
}

static unsigned ask_route(const struct address_pair *pair)
{
    struct route_query query = {
        .header = {.nlmsg_len = NLMSG_LENGTH(sizeof query.route),
                   .nlmsg_type = RTM_GETROUTE,
                   .nlmsg_flags = NLM_F_REQUEST},
        .route = {.rtm_family = pair->family,
                  .rtm_dst_len = (uint8_t)(pair->length * 8),
                  .rtm_src_len = (uint8_t)(pair->length * 8)},
    };
    add_attribute(&query, RTA_DST, pair->peer, pair->length);
    add_attribute(&query, RTA_SRC, pair->local, pair->length);
    if (pair->mark != 0)
        add_attribute(&query, RTA_MARK, &pair->mark, sizeof pair->mark);
    if (pair->scope != 0)
        add_attribute(&query, RTA_OIF, &pair->scope, sizeof pair->scope);
    int fd = sys.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        return 0;
    unsigned index = 0;
    char reply[4096];
    /* rtnetlink answers within the send call, so this recv does not wait. */
    if (sys.send(fd, &query, query.header.nlmsg_len, 0) == (ssize_t)query.header.nlmsg_len) {
        ssize_t size = sys.recv(fd, reply, sizeof reply, MSG_DONTWAIT);
        if (size > 0)
            index = output_device(reply, (size_t)size);
    }
    sys.close(fd);
    return index;
}

static int ask_feature(int fd, struct ifreq *request, uint32_t command, bool *ret_on)
{
    struct ethtool_value value = {.cmd = command};
    request->ifr_data = (void *)&value;
    if (sys.ioctl(fd, SIOCETHTOOL, request) < 0)
        return -errno;
    *ret_on = value.data != 0;
    return 0;
}

/* fd: any socket; the ioctls are about the device. */
static void ask_device(int fd, unsigned index, struct sluice_egress *egress)
{
    struct ifreq request = {.ifr_ifindex = (int)index};
    if (sys.ioctl(fd, SIOCGIFNAME, &request) < 0)
        return;
    egress->ifindex = index;
    memcpy(egress->name, request.ifr_name, sizeof egress->name);
    egress->name[sizeof egress->name - 1] = '\0';
    if (sys.ioctl(fd, SIOCGIFFLAGS, &request) == 0)
        egress->loopback = request.ifr_flags & IFF_LOOPBACK;
    if (ask_feature(fd, &request, ETHTOOL_GSG, &egress->scatter_gather) == 0 &&
        ask_feature(fd, &request, ETHTOOL_GTXCSUM, &egress->checksum) == 0)
        egress->known = true;
    ask_feature(fd, &request, ETHTOOL_GTSO, &egress->segmentation);
    struct ethtool_drvinfo driver = {.cmd = ETHTOOL_GDRVINFO};
    request.ifr_data = (void *)&driver;
    if (sys.ioctl(fd, SIOCETHTOOL, &request) == 0)
        memcpy(egress->driver, driver.driver, sizeof egress->driver - 1);
}

static struct cached_egress *cache_slot(const struct address_pair *pair)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < sizeof *pair; i++)
        hash = (hash ^ ((const uint8_t *)pair)[i]) * 16777619u;
    return &cache[hash % CACHE_SLOTS];
}

int egress_find(int fd, struct sluice_egress *ret_egress)
{
    struct address_pair pair;
    int result = read_addresses(fd, &pair);
    if (result == -ENOTCONN)
        return result;
    if (result < 0) {
        *ret_egress = (struct sluice_egress){0};
        return 0;
    }
    time_t now = (time_t)(clock_coarse_ms() / 1000);
    struct cached_egress *slot = cache_slot(&pair);
    if (slot->expires < now || memcmp(&slot->key, &pair, sizeof pair) != 0) {
        slot->key = pair;
        slot->expires = now + EGRESS_TTL_S;
        slot->egress = (struct sluice_egress){0};
        unsigned index = ask_route(&pair);
        if (index != 0)
            ask_device(fd, index, &slot->egress);
    }
    *ret_egress = slot->egress;
    return 0;
}
