/* SPDX-License-Identifier: MIT */
#include "service/preflight.h"
#include "service/admin.h"
#include "service/identity.h"
#include "service/log.h"

int preflight(const struct preflight *named, const struct config_origin *origin, struct failure *failure)
{
    struct identity identity = {0};
    struct address address;
    struct failure why;
    const char *option = "admin";
    int result = named->admin != NULL ? address_parse(named->admin, &address, &why) : 0;
    if (result == 0 && named->admin != NULL && !named->admin_anywhere)
        result = admin_check(&address, &why);
    if (result == 0)
        result = identity_find(named->user, named->group, &identity, &option, &why);
    identity_free(&identity);
    if (result == 0 && named->log != NULL) {
        option = named->log_option;
        result = log_check(named->log, &why);
    }
    return result < 0 ? config_wrong(origin, option, result, failure, "%.600s", why.text) : 0;
}
