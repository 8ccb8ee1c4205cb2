/*
 * init.h
 *		What the core learns of messages when the library is loaded.
 */
#ifndef PSYNC_MESSAGE_INIT_H
#define PSYNC_MESSAGE_INIT_H

/* Transports that are loaded from then on get the core's services. */
extern void psync_services_init(void);

/* Targets that take messages have an engine from then on. */
extern void psync_messages_init(void);

#endif							/* PSYNC_MESSAGE_INIT_H */
