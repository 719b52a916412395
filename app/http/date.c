/* SPDX-License-Identifier: MIT
 *
 * Own arithmetic in the proleptic Gregorian calendar: strftime and strptime depend on the locale, timegm may read the
 * time zone's file, and all are many times slower.
 */
#include "date.h"
#include <errno.h>
#include <string.h>

#define DAY INT64_C(86400)
#define YEAR_MAX 9999
#define WHEN_MIN (-INT64_C(62167219200)) /* 0000-01-01 00:00:00 */
#define WHEN_MAX INT64_C(253402300799)   /* 9999-12-31 23:59:59 */

static const char day_names[7][10] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
static const char month_names[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                        "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};

struct civil {
    int64_t year;
    int month, day; /* from 1 */
};

static int64_t clamp(time_t when)
{
    return when < WHEN_MIN ? WHEN_MIN : when > WHEN_MAX ? WHEN_MAX : when;
}

static int64_t floor_divide(int64_t number, int64_t divisor)
{
    return number / divisor - (number % divisor < 0);
}

/* Both ways count in eras of 400 years (146097 days) that begin on 1 March, so that the leap day is a year's last and
 * the months' lengths are linear: month m from March begins at day (153 m + 2) / 5. 719468 days lie between
 * 0000-03-01 and 1970-01-01. */
static int64_t days_from_civil(struct civil date)
{
    int64_t year = date.year - (date.month <= 2);
    int64_t era = floor_divide(year, 400), year_of_era = year - era * 400;
    int64_t month = date.month > 2 ? date.month - 3 : date.month + 9;
    int64_t day_of_year = (153 * month + 2) / 5 + date.day - 1;
    return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

static struct civil civil_from_days(int64_t days)
{
    days += 719468;
    int64_t era = floor_divide(days, 146097), day_of_era = days - era * 146097;
    int64_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    int64_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    int64_t month = (5 * day_of_year + 2) / 153;
    int day = (int)(day_of_year - (153 * month + 2) / 5 + 1);
    int from_january = (int)(month < 10 ? month + 3 : month - 9);
    return (struct civil){era * 400 + year_of_era + (from_january <= 2), from_january, day};
}

static bool is_leap(int64_t year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

static int month_length(int64_t year, int month)
{
    static const int8_t lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return lengths[month - 1] + (month == 2 && is_leap(year));
}

static void put_two_digits(char *to, int64_t number)
{
    to[0] = (char)('0' + number / 10);
    to[1] = (char)('0' + number % 10);
}

void http_date_format(time_t when, char buffer[static HTTP_DATE_LENGTH])
{
    int64_t seconds = clamp(when);
    int64_t days = floor_divide(seconds, DAY), in_day = seconds - days * DAY;
    struct civil date = civil_from_days(days);
    int64_t weekday = days + 4 - floor_divide(days + 4, 7) * 7; /* 1970-01-01 was a Thursday */

    memcpy(buffer, "Ddd, dd Mmm yyyy hh:mm:ss GMT", HTTP_DATE_LENGTH);
    memcpy(buffer, day_names[weekday], 3);
    put_two_digits(buffer + 5, date.day);
    memcpy(buffer + 8, month_names[date.month - 1], 3);
    put_two_digits(buffer + 12, date.year / 100);
    put_two_digits(buffer + 14, date.year % 100);
    put_two_digits(buffer + 17, in_day / 3600);
    put_two_digits(buffer + 20, in_day / 60 % 60);
    put_two_digits(buffer + 23, in_day % 60);
}

struct fields {
    struct civil date;
    int hour, minute, second;
};

/* What follows the name of the day. In the shape, 'd' stands for a digit, 'b' for a digit or a blank, 'm' for a byte of
 * the month's name, anything else for itself; the numbers are offsets into it. */
struct form {
    const char *shape;
    uint8_t day, month, year, year_digits, time;
};

static int number_at(const char *text, unsigned digits)
{
    int number = 0;
    for (unsigned i = 0; i < digits; i++)
        number = number * 10 + (text[i] == ' ' ? 0 : text[i] - '0');
    return number;
}

static bool read_form(const char *text, size_t length, const struct form *form, struct fields *ret_fields)
{
    if (length != strlen(form->shape))
        return false;
    for (size_t i = 0; i < length; i++) {
        char want = form->shape[i], got = text[i];
        bool digit = got >= '0' && got <= '9';
        if (want == 'd' ? !digit : want == 'b' ? !digit && got != ' ' : want != 'm' && want != got)
            return false;
    }
    int month = 0;
    while (month < 12 && memcmp(text + form->month, month_names[month], 3) != 0)
        month++;
    if (month == 12)
        return false;
    *ret_fields = (struct fields){
        .date = {number_at(text + form->year, form->year_digits), month + 1, number_at(text + form->day, 2)},
        .hour = number_at(text + form->time, 2),
        .minute = number_at(text + form->time + 3, 2),
        .second = number_at(text + form->time + 6, 2),
    };
    return true;
}

/* RFC 9110, 5.6.7: of the years with these last two digits, the latest that is not more than 50 years ahead. */
static int64_t full_year(const struct fields *fields, int64_t now)
{
    int64_t now_days = floor_divide(now, DAY);
    struct civil horizon = civil_from_days(now_days);
    horizon.year += 50;
    int64_t year = horizon.year / 100 * 100 + fields->date.year;

    int64_t in_day = fields->hour * 3600 + fields->minute * 60 + fields->second;
    struct civil date = {year, fields->date.month, fields->date.day};
    int64_t day = days_from_civil(date), last_day = days_from_civil(horizon);
    return day > last_day || (day == last_day && in_day > now - now_days * DAY) ? year - 100 : year;
}

int http_date_parse(struct slice value, time_t now, time_t *ret_when)
{
    static const struct form imf_fixdate = {", dd mmm dddd dd:dd:dd GMT", 2, 5, 9, 4, 14};
    static const struct form rfc850 = {", dd-mmm-dd dd:dd:dd GMT", 2, 5, 9, 2, 12};
    static const struct form asctime_form = {" mmm bd dd:dd:dd dddd", 5, 1, 17, 4, 8};

    /* The day of the week must be one, but need not be the right one: the date says it all. */
    int weekday = 0;
    while (weekday < 7 && (value.length < 3 || memcmp(value.data, day_names[weekday], 3) != 0))
        weekday++;
    if (weekday == 7)
        return -EINVAL;
    const char *text = value.data + 3;
    size_t length = value.length - 3;

    struct fields fields;
    if (!read_form(text, length, &imf_fixdate, &fields) && !read_form(text, length, &asctime_form, &fields)) {
        size_t name_rest = strlen(day_names[weekday]) - 3;
        if (length < name_rest || memcmp(text, day_names[weekday] + 3, name_rest) != 0 ||
            !read_form(text + name_rest, length - name_rest, &rfc850, &fields))
            return -EINVAL;
        fields.date.year = full_year(&fields, clamp(now));
    }

    /* 60 is a leap second, which time_t does not know: it reads as the second after. */
    if (fields.hour > 23 || fields.minute > 59 || fields.second > 60 || fields.date.year < 0 ||
        fields.date.year > YEAR_MAX || fields.date.day < 1 ||
        fields.date.day > month_length(fields.date.year, fields.date.month))
        return -EINVAL;
    *ret_when = days_from_civil(fields.date) * DAY + fields.hour * 3600 + fields.minute * 60 + fields.second;
    return 0;
}
