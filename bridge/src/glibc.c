/* Names of glibc 2.38 that a Swift runtime built on a newer system asks for; older ones (Debian 12 has 2.36) lack them.
 * Weak, so that a C library that has them is used. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEAK __attribute__((weak))

WEAK long __isoc23_strtol(const char *text, char **end, int base) { return strtol(text, end, base); }
WEAK unsigned long __isoc23_strtoul(const char *text, char **end, int base) { return strtoul(text, end, base); }
WEAK long long __isoc23_strtoll(const char *text, char **end, int base) { return strtoll(text, end, base); }
WEAK unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }

WEAK int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int read = vsscanf(text, format, list);
    va_end(list);
    return read;
}

WEAK size_t strlcpy(char *to, const char *from, size_t size) {
    size_t length = strlen(from);
    if (size > 0) {
        size_t copied = length < size ? length : size - 1;
        memcpy(to, from, copied);
        to[copied] = 0;
    }
    return length;
}

WEAK size_t strlcat(char *to, const char *from, size_t size) {
    size_t had = strnlen(to, size);
    return had == size ? size + strlen(from) : had + strlcpy(to + had, from, size - had);
}
