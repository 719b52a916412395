/* SPDX-License-Identifier: MIT
 *
 * Input: the value of X-Forwarded-For, as the parser of requests lets it pass.
 */
#include "forwarded.c"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (memchr(data, '\0', size) != NULL)
        return 0;
    char *text = exact_copy(data, size);
    struct slice list = {text, size};
    for (;;) {
        struct in6_addr address, again;
        size_t before = list.length;
        int r = http_forwarded_take_last(&list, &address);
        REQUIRE(r == 1 || r == 0 || r == -EINVAL);
        REQUIRE(list.data == text && (list.length < before || (r == 0 && before == 0)));
        if (r == 0) {
            REQUIRE(list.length == 0);
            break;
        }
        if (r < 0)
            continue;
        /* An address is taken as what it is when it stands there alone, in its usual form. */
        char shown[INET6_ADDRSTRLEN];
        REQUIRE(inet_ntop(AF_INET6, &address, shown, sizeof shown) != NULL);
        struct slice alone = {shown, strlen(shown)};
        REQUIRE(http_forwarded_take_last(&alone, &again) == 1 && memcmp(&address, &again, sizeof address) == 0);
    }
    free(text);
    return 0;
}
