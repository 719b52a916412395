/* SPDX-License-Identifier: MIT
 *
 * Input: eight bytes of the present time in the machine's order, then the value.
 */
#include "date.c"
#include "fuzz.h"

static void require_round_trip(time_t when, time_t now)
{
    char text[HTTP_DATE_LENGTH];
    time_t back;
    http_date_format(when, text);
    REQUIRE(http_date_parse((struct slice){text, sizeof text}, now, &back) == 0);
    REQUIRE(back == (when < WHEN_MIN ? WHEN_MIN : when > WHEN_MAX ? WHEN_MAX : when));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    time_t now, when = 4711;
    if (size < sizeof now)
        return 0;
    memcpy(&now, data, sizeof now);
    require_round_trip(now, now);

    char *value = exact_copy(data + sizeof now, size - sizeof now);
    int status = http_date_parse((struct slice){value, size - sizeof now}, now, &when);
    free(value);
    REQUIRE(status == 0 || (status == -EINVAL && when == 4711));
    if (status < 0)
        return 0;

    /* One beyond the last: a leap second at the end of the year 9999. */
    REQUIRE(when >= WHEN_MIN && when <= WHEN_MAX + 1);
    require_round_trip(when, now);
    struct tm parts;
    REQUIRE(gmtime_r(&when, &parts) != NULL);
    REQUIRE(timegm(&parts) == when);
    return 0;
}
