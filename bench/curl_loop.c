/*
 * curl_loop.c
 *		The yardstick for requests per second: a bare loop of curl's multi
 *		interface that posts the same body again and again.
 *
 *		curl_loop URL BODY_FILE REQUESTS IN_FLIGHT
 *
 * Prints requests per second.  It signs nothing, keeps nothing and checks
 * only the status, so no sender that does its work can be faster.
 */
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static size_t
discard(char *bytes, size_t one, size_t size, void *arg)
{
	return size;
}

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static CURL *
make_request(const char *url, const char *body, long size, struct curl_slist *headers)
{
	CURL	   *easy = curl_easy_init();

	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, size);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, discard);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	return easy;
}

static long
run(CURLM *multi, long requests, long in_flight)
{
	long		started = in_flight;
	long		failed = 0;
	int			running = 1;

	while (running > 0)
	{
		CURLMsg    *message;
		int			left;

		curl_multi_perform(multi, &running);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			CURL	   *easy = message->easy_handle;
			long		status = 0;

			curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
			failed += message->data.result != CURLE_OK || status != 200;
			curl_multi_remove_handle(multi, easy);
			if (started < requests)
			{
				curl_multi_add_handle(multi, easy);
				started++;
				running++;
			}
		}
		if (running > 0)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	}
	return failed;
}

int
main(int argc, char **argv)
{
	static char body[1 << 20];
	long		size,
				requests,
				in_flight,
				failed;
	FILE	   *file;
	CURLM	   *multi;
	struct curl_slist *headers;
	double		began;

	if (argc != 5 || (file = fopen(argv[2], "rb")) == NULL)
		return 2;
	size = (long) fread(body, 1, sizeof(body), file);
	fclose(file);
	requests = atol(argv[3]);
	in_flight = atol(argv[4]);
	curl_global_init(CURL_GLOBAL_DEFAULT);
	multi = curl_multi_init();
	headers = curl_slist_append(NULL, "Content-Type: application/json");
	headers = curl_slist_append(headers, "Expect:");
	for (long i = 0; i < in_flight; i++)
		curl_multi_add_handle(multi, make_request(argv[1], body, size, headers));
	began = now();
	failed = run(multi, requests, in_flight);
	if (failed > 0)
	{
		fprintf(stderr, "%ld of %ld requests failed\n", failed, requests);
		return 1;
	}
	printf("%.0f\n", requests / (now() - began));
	return 0;
}
