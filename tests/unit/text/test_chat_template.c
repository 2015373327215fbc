/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates: the stored cases of tests/reference/chat, whose texts transformers made; where a model's template
 * lies; what is refused, with its line; the bounds; every allocation failing.
 */
#include <errno.h>
#include <jansson.h>

#include "support.h"
#include "text/chat_template.h"

#define CHAT_FOLDER PST_TEST_SOURCE_DIR "/tests/reference/chat"
#define USER        "[{\"role\":\"user\",\"content\":\"hi\"}]"

static int parse(const char *template, const char *config, pst_chat_template **out, pst_error *err)
{
    pst_chat_source source = {0};
    if (template != NULL)
        source.chat_template_jinja = (pst_text_file){"chat_template.jinja", template, strlen(template)};
    if (config != NULL)
        source.tokenizer_config_json = (pst_text_file){"tokenizer_config.json", config, strlen(config)};
    return pst_chat_template_parse(&source, out, err);
}

static int render(const char *template, const char *config, const pst_chat_request *request, pst_chat_text *out,
                  pst_error *err)
{
    pst_chat_template *made = NULL;
    int status = parse(template, config, &made, err);
    if (status == 0)
        status = pst_chat_render(made, request, out, err);
    pst_chat_template_close(made);
    return status;
}

static pst_chat_request messages(const char *json)
{
    return (pst_chat_request){
        .messages = json, .messages_bytes = strlen(json), .has_time = true, .time_seconds = 86399};
}

static void expect(const char *template, const char *wanted)
{
    pst_chat_request request = messages(USER);
    pst_chat_text made = {0};
    pst_error err = {0};
    if (render(template, "{\"bos_token\":\"<s>\"}", &request, &made, &err) < 0)
        fail_msg("%s\n%s", template, err.message);
    assert_string_equal(made.text, wanted);
    assert_int_equal(made.bytes, strlen(wanted));
    pst_chat_text_free(&made);
}

/* The template must fail, with these words in the error. */
static void refuse_with(const char *template, const pst_chat_request *request, const char *words)
{
    pst_chat_text made = {0};
    pst_error err = {0};
    int status = render(template, NULL, request, &made, &err);
    if ((status != PST_E_FORMAT && status != PST_E_BUDGET) || strstr(err.message, words) == NULL)
        fail_msg("%.200s\ngave %d: %s, not \"%s\"", template, status, err.message, words);
    assert_null(made.text);
    assert_null(strchr(err.message, '\n'));
}

static void refuse(const char *template, const char *words)
{
    const pst_chat_request request = messages(USER);
    refuse_with(template, &request, words);
}

/* ---- stored cases ---- */

static char *dump(const json_t *object, const char *key, size_t *bytes)
{
    const json_t *value = json_object_get(object, key);
    char *text = json_is_null(value) || value == NULL ? NULL : json_dumps(value, JSON_ENCODE_ANY);
    *bytes = text != NULL ? strlen(text) : 0;
    return text;
}

static void run_case(const json_t *all, const json_t *item, size_t number)
{
    size_t bytes, config_bytes;
    const char *file = json_string_value(json_object_get(item, "file"));
    char *source = file != NULL ? read_file(CHAT_FOLDER "/templates", file, &bytes)
                                : strdup(json_string_value(json_object_get(item, "template")));
    pst_chat_request request = {.is_whole = json_is_true(json_object_get(item, "is_whole")),
                                .has_time = true,
                                .time_seconds = json_integer_value(json_object_get(all, "time"))};
    char *parts[] = {dump(item, "messages", &request.messages_bytes), dump(item, "tools", &request.tools_bytes),
                     dump(item, "documents", &request.documents_bytes),
                     dump(file != NULL ? item : all, "variables", &request.variables_bytes),
                     dump(all, "config", &config_bytes)};
    request.messages = parts[0];
    request.tools = parts[1];
    request.documents = parts[2];
    request.variables = parts[3];
    pst_chat_text made = {0};
    pst_error err = {0};
    int status = render(source, parts[4], &request, &made, &err);
    const char *wanted = json_string_value(json_object_get(item, "text"));
    if (wanted == NULL && status != PST_E_FORMAT)
        fail_msg("case %zu, %s: gave %s where it should fail", number, source, made.text);
    if (wanted != NULL && (status < 0 || strcmp(made.text, wanted) != 0))
        fail_msg("case %zu, %s\ngave   %s\nwanted %s", number, source, status < 0 ? err.message : made.text, wanted);
    pst_chat_text_free(&made);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        free(parts[i]);
    free(source);
}

static void test_stored_cases(void **state)
{
    (void)state;
    json_t *all = json_load_file(CHAT_FOLDER "/cases.json", 0, NULL);
    assert_non_null(all);
    const json_t *cases = json_object_get(all, "cases"), *item;
    size_t i;
    assert_true(json_array_size(cases) > 400);
    json_array_foreach(cases, i, item) run_case(all, item, i);
    json_decref(all);
}

/* ---- by eye ---- */

static void test_language(void **state)
{
    (void)state;
    expect("a\n", "a");
    expect("{{ bos_token }}{{ eos_token }}|{{ unk }}", "<s>|");
    expect("  {% if true %}\n x\n  {% endif %}\ny", " x\ny");
    expect("a  {%- if true -%}  \n x {{- 1 -}} \n{% endif %}", "ax1");
    expect("{%+ if true %}x{% endif +%}\n", "x");
    expect("{{ messages[::-1][0].content[-1] }}{{ 'héé'[1:2] }}{{ 'abc'[::-2] }}", "iéca");
    expect("{% for a in [1,2,3,4] %}{% if a == 2 %}{% continue %}{% elif a > 3 %}{% break %}{% endif %}{{ a }}{% "
           "endfor %}",
           "13");
    expect("{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "1");
    expect("{% set n = namespace(x=1) %}{% for i in [1] %}{% set n.x = 2 %}{% endfor %}{{ n.x }}", "2");
    expect("{% for n in [[1,[[2,[]]]],[3,[]]] recursive %}{{ loop.depth }}:{{ n[0] }}({{ loop(n[1]) }}){% endfor %}",
           "1:1(2:2())1:3()");
    expect("{% macro m(a, b=a) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}{{ m(5) }}",
           "12(3,){'k': 4}55(){}");
    expect("{{ {'b': 1, 'a': [true, none, 1.5, 'x\\'']} }}", "{'b': 1, 'a': [True, None, 1.5, \"x'\"]}");
    expect("{{ {'b': 1, 'a': 'é\"\\n'} | tojson }}", "{\"b\": 1, \"a\": \"é\\\"\\n\"}");
    expect("{{ [1, {'a': []}] | tojson(indent=1) }}", "[\n 1,\n {\n  \"a\": []\n }\n]");
    expect("{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 1 / 4 }} {{ 2 ** 10 }} {{ 1e22 }} {{ 0.1 + 0.2 }} {{ 1e-5 }}",
           "3 -4 2 0.25 1024 1e+22 0.30000000000000004 1e-05");
    expect("{{ 1 < 2 < 3 }} {{ 'b' in 'abc' }} {{ 2 not in [1] }} {{ not true or 1 }} {{ 'a' ~ 1 ~ none }}",
           "True True True 1 a1None");
    expect("{{ 'Straße ΣΑΣ ǆ'.upper() }} {{ 'ΣΑΣ'.lower() }} {{ 'ßa'.capitalize() }}", "STRASSE ΣΑΣ Ǆ σας Ssa");
    expect("{{ 'x'.items is defined }}{{ {'items': 1}['items'] }}{{ {'get': 2}.get('get') }}", "False12");
    expect("{{ ''.__class__ }}{{ messages.__class__.__mro__ }}", "");
    expect("{{ 'c' > 'a' }}{{ ['{', '}', '|'] | max }}{{ ' a b c '.rsplit(none, 1) }}{{ ' a b '.split(none, 1) }}",
           "True}[' a b', 'c']['a', 'b ']");
    expect("{% raw %}{{ x }}{% endraw %}{# no #}", "{{ x }}");
    expect("{{ strftime_now('%Y-%m-%d %H:%M:%S %A %-d %b %j') }}", "1970-01-01 23:59:59 Thursday 1 Jan 001");
    expect("{{ [3, 1] | select | list }}{{ 'x' if [] | select('odd') }}", "[3, 1]x");
}

static void test_where_templates_lie(void **state)
{
    (void)state;
    const pst_chat_request plain = messages(USER);
    pst_chat_request with_tools = messages(USER);
    pst_chat_template *t = NULL;
    pst_chat_text made = {0};
    pst_error err = {0};
    with_tools.tools = "[]";
    with_tools.tools_bytes = 2;
    assert_int_equal(parse(NULL, NULL, &t, &err), 0);
    assert_null(t);
    assert_int_equal(parse(NULL, "{\"chat_template\":null}", &t, &err), 0);
    assert_null(t);
    assert_int_equal(render("jinja", "{\"chat_template\":\"config\"}", &plain, &made, &err), 0);
    assert_string_equal(made.text, "jinja");
    pst_chat_text_free(&made);
    static const char list[] =
        "{\"chat_template\":[{\"name\":\"default\",\"template\":\"D{{eos_token}}\"},{\"name\":\"rag\","
        "\"template\":\"{%\"},{\"name\":\"tool_use\",\"template\":\"T\"}],\"eos_token\":{\"content\":\"E\"}}";
    assert_int_equal(render(NULL, list, &plain, &made, &err), 0);
    assert_string_equal(made.text, "DE");
    pst_chat_text_free(&made);
    assert_int_equal(render(NULL, list, &with_tools, &made, &err), 0);
    assert_string_equal(made.text, "T");
    pst_chat_text_free(&made);
    assert_int_equal(parse(NULL, "{\"chat_template\":1}", &t, &err), PST_E_FORMAT);
    assert_int_equal(parse(NULL, "{\"chat_template\":\"x\",\"bos_token\":3}", &t, &err), PST_E_FORMAT);
    assert_non_null(strstr(err.message, "bos_token"));
    assert_string_equal(err.path, "tokenizer_config.json");
}

/* ---- refusals ---- */

static void test_refused_templates(void **state)
{
    (void)state;
    refuse("a\n\n{% if %}", "line 3 of the chat template: expected an expression");
    refuse("{% if x %}", "expected endif");
    refuse("{% for a in b %}{% endif %}", "line 1");
    refuse("{{ 'a }}", "without its end");
    refuse("{{ a", "without its end");
    refuse("{# a", "without its end");
    refuse("{% raw %}", "endraw");
    refuse("{{ (a] }}", "closes what was not opened");
    refuse("{% break %}", "outside of a loop");
    refuse("{% include 'x' %}", "not supported");
    refuse("{% do x.append(1) %}", "not supported");
    refuse("{{ x | nothing }}", "no filter \"nothing\"");
    refuse("{{ x is nothing }}", "no test \"nothing\"");
    refuse("\n{{ messages.append(1) }}", "line 2");
    refuse("{{ missing.a }}", "undefined value, missing");
    refuse("{{ missing() }}", "undefined value, missing");
    refuse("{{ 1 + 'a' }}", "no \"+\" of an int and a string");
    refuse("{{ 9223372036854775807 + 1 }}", "64 bits");
    refuse("{{ 1 // 0 }}", "zero");
    refuse("{% set a, b = [1] %}", "1 values for 2");
    refuse("{% set messages.x = 1 %}", "namespace");
    refuse("{{ raise_exception('no ' ~ 'way\\n') }}", "no way");
    refuse("{{ namespace(__class__=1) }}", "begins with");
    pst_chat_request late = messages(USER);
    late.has_time = false;
    refuse_with("{{ strftime_now('%Y') }}", &late, "time");
}

static void test_refused_conversations(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"{}", "not a list"},
        {"[]", "not a list of messages"},
        {"[1]", "message 0 is not an object"},
        {"[{\"content\":\"x\"}]", "no role"},
        {"[{\"role\":\"user\",\"content\":1}]", "neither a text"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]", "\"image_url\""},
        {"[{\"role\":\"user\",\"content\":[{\"text\":\"\"}]}]", "no type"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "no text"},
        {"[", "not valid JSON"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const pst_chat_request request = messages(wrong[i][0]);
        refuse_with("x", &request, wrong[i][1]);
    }
}

/* ---- bounds ---- */

static void test_bounds(void **state)
{
    (void)state;
    const char *const steps = "steps", *const deep = "deeper", *const memory = "MiB";
    refuse("{% set s = 'x' * 1000000 %}{% for a in range(99999) %}{{ 'y' in s }}{% endfor %}", steps);
    refuse("{{ ('a' * 3000000).rfind('a' * 1500000 ~ 'b') }}", steps); /* not the product of both */
    refuse("{% set a = [0] * 999999 %}{% set b = [0] * 999999 %}{% for i in range(99999) %}{% set x = a == b %}"
           "{% endfor %}",
           steps);
    refuse("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", memory);
    refuse("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", deep);
    refuse("{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}", deep);
    refuse("{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x == [n.x] }}",
           deep);
    refuse("{% set n = namespace(x='xxxxxxxx') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
           memory);
    refuse("{{ 'x' * 9999999999 }}", memory);
    refuse("{{ [0] * 9999999999 }}", memory);
    refuse("{{ 'x'.center(9999999999) }}", memory);
    refuse("{{ '%9999999d' % 1 }}", "wide");
    refuse("{{ range(10 ** 9) | list }}", "range");
    refuse("{% for a in range(99999) %}{{ 'xxxxxxxxxxxxxxxx' * 4096 }}{% endfor %}", memory);
    pst_chat_request small = messages(USER);
    small.memory_bytes = 1 << 20;
    refuse_with("{{ 'x' * 2000000 }}", &small, "1 MiB");
    refuse_with("{% set n = namespace(x=[]) %}{% for i in range(9999) %}{% set n.x = n.x + [i] %}{% endfor %}", &small,
                "1 MiB");
}

/* Source nested too deep is refused while parsing, whatever it is nested in. */
static void test_nesting(void **state)
{
    (void)state;
    static const char *const patterns[][3] = {
        {"{{ ", "(", ""},   {"{{ ", "-", ""},   {"{{ ", "not ", ""},         {"{{ ", "[", ""},
        {"{{ a", ".a", ""}, {"{{ a", "|e", ""}, {"{{ 1", "+1", ""},          {"", "{% if a %}", ""},
        {"{{ ", "{1:", ""}, {"{{ a", "[a", ""}, {"{{ a", " if a else a", ""}};
    char *text = malloc(100000);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        strcpy(text, patterns[i][0]);
        char *at = text + strlen(text);
        for (int k = 0; k < 5000; k++)
            at = stpcpy(at, patterns[i][1]);
        pst_chat_template *t = NULL;
        pst_error err = {0};
        assert_int_equal(parse(text, NULL, &t, &err), PST_E_FORMAT);
        assert_null(t);
    }
    free(text);
}

/* A text that grows in a loop is not copied each time. */
static void test_growing_text(void **state)
{
    (void)state;
    const pst_chat_request request = messages(USER);
    pst_chat_text made = {0};
    pst_error err = {0};
    assert_int_equal(
        render("{% set n = namespace(x='') %}{% for i in range(50000) %}{% set n.x = n.x + 'twelve bytes' %}"
               "{% endfor %}{{ n.x }}",
               NULL, &request, &made, &err),
        0);
    assert_int_equal(made.bytes, 600000);
    assert_true(made.memory_bytes < 64 << 20);
    pst_chat_text_free(&made);
}

static void test_allocation(void **state)
{
    (void)state;
    size_t bytes;
    char *template = read_file(CHAT_FOLDER "/templates", "headers.jinja", &bytes);
    pst_chat_request request =
        messages("[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u\"}]");
    request.tools = "[{\"type\":\"function\"}]";
    request.tools_bytes = strlen(request.tools);
    int64_t failures = 0;
    for (int64_t at = 0;; at++) {
        pst_chat_text made = {0};
        pst_error err = {0};
        pst_heap_fail_after(at, 0);
        int status = render(template, "{\"bos_token\":\"<s>\"}", &request, &made, &err);
        pst_heap_fail_after(-1, 0);
        pst_chat_text_free(&made);
        assert_int_equal(pst_heap_live_count(), 0);
        if (status == 0)
            break;
        assert_int_equal(status, -ENOMEM);
        failures++;
    }
    assert_true(failures > 10);
    free(template);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stored_cases),
                                       cmocka_unit_test(test_language),
                                       cmocka_unit_test(test_where_templates_lie),
                                       cmocka_unit_test(test_refused_templates),
                                       cmocka_unit_test(test_refused_conversations),
                                       cmocka_unit_test(test_bounds),
                                       cmocka_unit_test(test_nesting),
                                       cmocka_unit_test(test_growing_text),
                                       cmocka_unit_test(test_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
