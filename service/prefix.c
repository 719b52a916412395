/* SPDX-License-Identifier: MIT */
#include "service/prefix.h"
#include "base/ipv6.h"
#include "base/text.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#define IPV4_BEGINS 96 /* bits of ::ffff:0:0 */

/* Without the bits behind the prefix. */
static struct in6_addr cut(struct in6_addr address, unsigned bits)
{
    for (unsigned i = 0; i < sizeof address.s6_addr; i++) {
        unsigned keep = bits <= 8 * i ? 0 : bits >= 8 * i + 8 ? 8 : bits - 8 * i;
        address.s6_addr[i] = (uint8_t)(address.s6_addr[i] & ~(0xffu >> keep));
    }
    return address;
}

int address_prefix_parse(const char *text, struct address_prefix *ret_prefix, struct failure *failure)
{
    char address[INET6_ADDRSTRLEN], shown[INET6_ADDRSTRLEN];
    size_t length = strcspn(text, "/");
    struct address_prefix prefix;
    struct in_addr ipv4;
    uint64_t bits;
    if (length >= sizeof address)
        return failure_set(failure, -EINVAL,
                           "\"%.100s\" is no address; write 10.0.0.0/8, 2001:db8::/32, or one address", text);
    memcpy(address, text, length);
    address[length] = '\0';
    bool is_ipv4 = inet_pton(AF_INET, address, &ipv4) == 1;
    unsigned most = is_ipv4 ? 32 : 128;
    if (is_ipv4)
        prefix.address = ipv6_mapped(&ipv4);
    else if (inet_pton(AF_INET6, address, &prefix.address) != 1)
        return failure_set(failure, -EINVAL,
                           "\"%.100s\" is no address; write 10.0.0.0/8, 2001:db8::/32, or one address", text);
    if (text[length] == '\0')
        bits = most;
    else if (text_parse_unsigned(text + length + 1, &bits) < 0 || bits > most)
        return failure_set(failure, -EINVAL, "\"%.100s\": a prefix of this address has 0 to %u bits", text, most);
    prefix.bits = (unsigned)bits + 128 - most;
    struct in6_addr network = cut(prefix.address, prefix.bits);
    if (memcmp(&network, &prefix.address, sizeof network) != 0) {
        inet_ntop(is_ipv4 ? AF_INET : AF_INET6, is_ipv4 ? (void *)&network.s6_addr[IPV4_BEGINS / 8] : &network, shown,
                  sizeof shown);
        return failure_set(failure, -EINVAL, "\"%.100s\" has bits behind its prefix; is %s/%u meant, or %s alone?",
                           text, shown, (unsigned)bits, address);
    }
    *ret_prefix = prefix;
    return 0;
}

bool address_in_prefixes(const struct in6_addr *address, const struct address_prefix *prefixes, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct in6_addr network = cut(*address, prefixes[i].bits);
        if (memcmp(&network, &prefixes[i].address, sizeof network) == 0)
            return true;
    }
    return false;
}

bool address_as_ipv6(const struct sockaddr *address, struct in6_addr *ret_address)
{
    if (address->sa_family == AF_INET)
        *ret_address = ipv6_mapped(&((const struct sockaddr_in *)(const void *)address)->sin_addr);
    else if (address->sa_family == AF_INET6)
        *ret_address = ((const struct sockaddr_in6 *)(const void *)address)->sin6_addr;
    else
        return false;
    return true;
}
