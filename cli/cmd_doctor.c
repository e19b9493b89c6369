/* SPDX-License-Identifier: Apache-2.0 */
/* cmd_doctor.c -- what this machine allows, and the remedy where it could allow more. */
#include <stdio.h>

#include "cli/cli.h"

struct report {
    bool is_json; /* else printed as they come */
    json_t *findings;
    unsigned n_states[HR_FINDING_STATES];
};

static void take_finding(void *user, const struct hr_finding *finding)
{
    const char *state = hr_finding_state_name(finding->state);
    struct report *report = (struct report *) user;

    report->n_states[finding->state]++;
    if (report->is_json) {
        json_array_append_new(report->findings,
                              json_pack("{s:s, s:s, s:o, s:o}", "name", finding->name, "state",
                                        state, "found", cli_json_text(finding->found), "remedy",
                                        cli_json_text(finding->remedy)));
        return;
    }
    printf("%-11s %-8s %s\n", finding->name, state, finding->found);
    if (finding->remedy)
        printf("%-11s %-8s %s\n", "", "", finding->remedy);
}

int cli_doctor(const struct cli_options *o)
{
    const struct hr_doctor_params params = {.path = o->paths[0], .cache_dir = o->cache_dir};
    struct report report = {.is_json = o->json, .findings = o->json ? json_array() : NULL};
    struct hr_error err = {0};
    const unsigned *n = report.n_states;

    if (o->n_paths > 1)
        return cli_usage("doctor takes one MODEL: a folder or a file");
    if (hr_doctor(&params, take_finding, &report, &err) < 0) {
        json_decref(report.findings);
        return cli_fail(&err);
    }
    if (o->json)
        return cli_print_json(
            json_pack("{s:s, s:o}", "verb", "doctor", "findings", report.findings));
    printf("%u ok, %u slow, %u missing\n", n[HR_FINDING_OK], n[HR_FINDING_SLOW],
           n[HR_FINDING_MISSING]);
    return cli_flush();
}
