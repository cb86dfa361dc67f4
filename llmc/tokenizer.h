/*
Turns tokens back into text. Decoding only: text is tokenized by the scripts in data/.

Where the meaning of a token comes from, in this order:
    1. tokenizer.bin beside the training data, in llm.c's format: 256 int32 of header (magic
       20240328, version 2, number of tokens, number of the end-of-text token), then for every token
       one byte of length and that many bytes of text;
    2. a vocabulary of at most 257: tokens 0 to 255 are bytes, 256 is the end of a text;
    3. nothing: numbers are printed.

C11 that also compiles as C++17.
*/
#ifndef LLMC_TOKENIZER_H
#define LLMC_TOKENIZER_H

#include <ctype.h>
#include "utils.h"

#define TOKENIZER_MAGIC 20240328
#define TOKENIZER_VERSION 2
#define TOKENIZER_HEADER_BYTES 1024

typedef struct {
    int num_tokens;         // with known text; 0: none
    size_t* start;          // (num_tokens+1): token i is text[start[i]] to text[start[i+1] - 1]
    char* text;
    int end_of_text;        // the token that separates documents; generated text starts from it
} Tokenizer;

// ---------------------------------------------------------------------------------------------
// Making the table

static inline void tokenizer_read(Tokenizer* tokenizer, FILE* file, const char* path) {
    int32_t header[4];
    uint64_t bytes = file_size(file, path);
    check(bytes >= TOKENIZER_HEADER_BYTES, "%s: too short for a tokenizer file", path);
    file_read(header, sizeof(header), file, path);
    check(header[0] == TOKENIZER_MAGIC && header[1] == TOKENIZER_VERSION && header[2] > 0
          && header[2] <= 65536, "%s: not a tokenizer file that this program can read (magic %d, "
          "version %d, %d tokens)", path, header[0], header[1], header[2]);
    int n = header[2];
    tokenizer->num_tokens = n;
    tokenizer->end_of_text = header[3];
    tokenizer->start = (size_t*)xmalloc((size_t)(n + 1) * sizeof(size_t), "the tokenizer");
    tokenizer->text = (char*)xmalloc((size_t)bytes, "the tokenizer");
    check(fseek(file, TOKENIZER_HEADER_BYTES, SEEK_SET) == 0, "cannot read %s", path);
    size_t position = 0;
    for (int i = 0; i < n; i++) {
        unsigned char length;
        file_read(&length, 1, file, path);
        tokenizer->start[i] = position;
        file_read(tokenizer->text + position, length, file, path);
        position += length;
    }
    tokenizer->start[n] = position;
}

static inline void tokenizer_bytes(Tokenizer* tokenizer) {
    const char* end_of_text = "<|endoftext|>";
    tokenizer->num_tokens = 257;
    tokenizer->start = (size_t*)xmalloc(258 * sizeof(size_t), "the tokenizer");
    tokenizer->text = (char*)xmalloc(256 + strlen(end_of_text), "the tokenizer");
    for (int i = 0; i <= 256; i++) { tokenizer->start[i] = (size_t)i; }
    for (int i = 0; i < 256; i++) { tokenizer->text[i] = (char)i; }
    tokenizer->start[257] = 256 + strlen(end_of_text);
    memcpy(tokenizer->text + 256, end_of_text, strlen(end_of_text));
}

// train_data is the name or pattern of the training data, V the vocabulary size of the model.
static inline void tokenizer_open(Tokenizer* tokenizer, const char* train_data, int V) {
    char directory[PATH_BYTES], path[PATH_BYTES];
    path_directory(directory, train_data);
    path_format(path, "%s/tokenizer.bin", directory);
    FILE* file = fopen(path, "rb");
    if (file != NULL) {
        tokenizer_read(tokenizer, file, path);
        fclose(file);
    } else if (V <= 257) {
        tokenizer_bytes(tokenizer);
        tokenizer->end_of_text = V == 257 ? 256 : V > '\n' ? '\n' : 0;
    } else {
        tokenizer->num_tokens = 0;
        tokenizer->start = NULL;
        tokenizer->text = NULL;
        tokenizer->end_of_text = V - 1;     // as in GPT-2's vocabulary
    }
    check(tokenizer->end_of_text >= 0 && tokenizer->end_of_text < V, "%s: end-of-text token %d is "
          "not in the model's vocabulary of %d", path, tokenizer->end_of_text, V);
}

static inline void tokenizer_close(Tokenizer* tokenizer) {
    free(tokenizer->start);
    free(tokenizer->text);
}

// ---------------------------------------------------------------------------------------------
// Printing

// Bytes of the printable UTF-8 character at text[0], at most `bytes`; 0 if there is none.
static inline size_t utf8_printable(const unsigned char* text, size_t bytes) {
    static const uint32_t smallest[5] = { 0, 0, 0xa0, 0x800, 0x10000 };    // by length
    if (text[0] < 0x80) { return isprint(text[0]) || text[0] == '\n' || text[0] == '\t' ? 1 : 0; }
    size_t length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
    if (text[0] < 0xc0 || text[0] >= 0xf8 || length > bytes) { return 0; }
    uint32_t character = text[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xc0) != 0x80) { return 0; }
        character = character << 6 | (text[i] & 0x3fu);
    }
    int surrogate = character >= 0xd800 && character <= 0xdfff;
    return character >= smallest[length] && character <= 0x10ffff && !surrogate ? length : 0;
}

// A model may generate anything, also what a terminal takes for a command: all that is not
// printable is written as \x1b.
static inline void print_safely(FILE* to, const unsigned char* text, size_t bytes) {
    for (size_t i = 0; i < bytes; ) {
        size_t length = utf8_printable(text + i, bytes - i);
        if (length > 0) {
            fwrite(text + i, 1, length, to);
            i += length;
        } else {
            fprintf(to, "\\x%02x", text[i]);
            i++;
        }
    }
}

// The tokens are joined before they are printed, since one character may be spread over several.
static inline void tokenizer_print(FILE* to, const Tokenizer* tokenizer,
                                   const int* tokens /* (count) */, int count) {
    unsigned char* joined = (unsigned char*)xmalloc((size_t)count * 256, "generated text");
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        int token = tokens[i];
        if (token < tokenizer->num_tokens) {
            size_t start = tokenizer->start[token], length = tokenizer->start[token + 1] - start;
            memcpy(joined + bytes, tokenizer->text + start, length);
            bytes += length;
        } else {
            bytes += (size_t)snprintf((char*)joined + bytes, 256, "%s%d", i > 0 ? " " : "", token);
        }
    }
    print_safely(to, joined, bytes);
    free(joined);
}

#endif
