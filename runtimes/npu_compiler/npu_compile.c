/* Compile one graph for an Intel NPU that is not there.
 *
 * usage: npu_compile.exe MODEL PLATFORM BLOB [KEY=VALUE ...]
 *
 * MODEL is an IR or ONNX file of fixed shapes, PLATFORM 3720, 4000 or 5010. Prints "COMPILER n", the compiler's log
 * (which holds its cost model's estimate), and in the end "OK" or "FAIL step: reason". Built with MinGW against
 * openvino_c.dll of OpenVINO's Windows wheel, which carries the compiler; the Linux wheel does not
 * (github.com/openvinotoolkit/openvino/issues/36374). The few declarations needed are here, as the wheel has no headers.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct ov_core ov_core_t;
typedef struct ov_model ov_model_t;
typedef struct ov_compiled_model ov_compiled_model_t;

#define IMPORT __declspec(dllimport)
IMPORT int ov_core_create(ov_core_t **);
IMPORT int ov_core_get_property(const ov_core_t *, const char *, const char *, char **);
IMPORT int ov_core_set_property(const ov_core_t *, const char *, ...);
IMPORT int ov_core_read_model(const ov_core_t *, const char *, const char *, ov_model_t **);
IMPORT int ov_core_compile_model(const ov_core_t *, const ov_model_t *, const char *, size_t, ov_compiled_model_t **, ...);
IMPORT int ov_compiled_model_export_model(const ov_compiled_model_t *, const char *);
IMPORT const char *ov_get_last_err_msg(void);

static void check(int status, const char *step) {
    if (status == 0) return;
    printf("FAIL %s: %s\n", step, ov_get_last_err_msg());
    fflush(stdout);
    exit(1);
}

static void set(ov_core_t *core, char *pair) {
    char *value = strchr(pair, '=');
    if (!value) {
        printf("FAIL options: %s is not KEY=VALUE\n", pair);
        exit(2);
    }
    *value = 0;
    check(ov_core_set_property(core, "NPU", pair, value + 1), pair);
}

int main(int argc, char **argv) {
    ov_core_t *core;
    ov_model_t *model;
    ov_compiled_model_t *compiled;
    char *version = NULL, device[32];
    if (argc < 4) {
        printf("FAIL options: expected MODEL PLATFORM BLOB\n");
        return 2;
    }
    check(ov_core_create(&core), "start");
    check(ov_core_get_property(core, "NPU", "NPU_COMPILER_VERSION", &version), "find the compiler");
    printf("COMPILER %s\n", version);
    for (int i = 4; i < argc; i++) set(core, argv[i]);
    check(ov_core_read_model(core, argv[1], NULL, &model), "read");
    snprintf(device, sizeof device, "NPU.%s", argv[2]);
    check(ov_core_compile_model(core, model, device, 4, &compiled, "NPU_COMPILER_TYPE", "PLUGIN", "LOG_LEVEL", "LOG_INFO"), "compile");
    check(ov_compiled_model_export_model(compiled, argv[3]), "export");
    printf("OK\n");
    return 0;
}
