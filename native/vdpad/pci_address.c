/* PCI addresses in the one form that everything is compared in. */
#include "pci_address.h"

#include <errno.h>
#include <stdio.h>

/*
 * Reads up to `limit` hexadecimal digits (not by ctype:
 * no locale has a say here); returns how many there were.
 */
static unsigned int read_hex(const char **text, unsigned int limit, unsigned long *value) {
    unsigned int digits = 0;

    *value = 0;
    for (; digits < limit; digits++, (*text)++) {
        char c = **text;
        unsigned int digit;

        if (c >= '0' && c <= '9')
            digit = (unsigned int)(c - '0');
        else if (c >= 'a' && c <= 'f')
            digit = (unsigned int)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F')
            digit = (unsigned int)(c - 'A') + 10;
        else
            break;
        *value = *value * 16 + digit;
    }
    return digits;
}

int pci_address_normalise(const char *text, char address[PCI_ADDRESS_SIZE]) {
    unsigned long domain = 0;
    unsigned long bus;
    unsigned long device;
    unsigned long function;
    unsigned int digits = read_hex(&text, 8, &bus);

    if (*text++ != ':')
        return -EINVAL;
    if (digits >= 4) {
        domain = bus;
        digits = read_hex(&text, 2, &bus);
        if (*text++ != ':')
            return -EINVAL;
    }
    if (digits != 2)
        return -EINVAL;
    if (read_hex(&text, 2, &device) != 2 || device > 0x1f || *text++ != '.')
        return -EINVAL;
    if (read_hex(&text, 1, &function) != 1 || function > 7 || *text != '\0')
        return -EINVAL;
    snprintf(address, PCI_ADDRESS_SIZE, "%04lx:%02lx:%02lx.%lx", domain & 0xffffffffUL, bus & 0xff,
             device & 0x1f, function & 7);
    return 0;
}
