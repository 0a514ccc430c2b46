/* Runs every file of a corpus once, where libFuzzer is not at hand: PROGRAM DIRECTORY */
#include "target.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#define FILE_MAX ((size_t)64 * 1024)

static int run_file(const char *path) {
    FILE *file = fopen(path, "rb");
    uint8_t *data = malloc(FILE_MAX);
    size_t size;

    if (file == NULL || data == NULL) {
        perror(path);
        exit(1);
    }
    size = fread(data, 1, FILE_MAX, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

int main(int argc, char **argv) {
    DIR *files = argc == 2 ? opendir(argv[1]) : NULL;
    int count = 0;

    if (files == NULL) {
        fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
        return 2;
    }
    for (const struct dirent *entry; (entry = readdir(files)) != NULL;) {
        char path[1024];

        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", argv[1], entry->d_name);
        count += run_file(path);
    }
    closedir(files);
    printf("%d files\n", count);
    return count > 0 ? 0 : 1;
}
