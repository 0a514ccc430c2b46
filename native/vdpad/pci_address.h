/* PCI addresses in the one form that everything is compared in. */
#ifndef VDPAD_PCI_ADDRESS_H
#define VDPAD_PCI_ADDRESS_H

/* "ffffffff:ff:1f.7" and the terminating zero. */
#define PCI_ADDRESS_SIZE 17

/*
 * Normalises "[dddd:]bb:dd.f" into the form that the kernel prints: lower case, domain 0000 added when
 * absent, a domain of more than four digits without leading zeros. -EINVAL if `text` is not a PCI address.
 */
int pci_address_normalise(const char *text, char address[PCI_ADDRESS_SIZE]);

#endif
