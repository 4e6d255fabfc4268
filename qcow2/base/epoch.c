// SPDX-License-Identifier: Apache-2.0
#include "qcow2/base/epoch.h"

#include <assert.h>
#include <stddef.h>

void epochs_init(struct epochs *epochs, const char *event)
{
    TAILQ_INIT(&epochs->members);
    waitq_init(&epochs->oldest_left, event);
    epochs->next = 0;
}

uint64_t epoch_now(const struct epochs *epochs)
{
    return epochs->next;
}

void epoch_enter(struct epochs *epochs, struct epoch_member *member)
{
    // The newest member sees the state that a member of a new epoch would see.
    if (member->inside == epochs && member->epoch + 1 == epochs->next)
        return;
    epoch_leave(member);
    member->inside = epochs;
    member->epoch = epochs->next++;
    TAILQ_INSERT_TAIL(&epochs->members, member, link);
}

void epoch_enter_at(struct epochs *epochs, struct epoch_member *member, uint64_t epoch)
{
    struct epoch_member *before;

    assert(!member->inside);
    member->inside = epochs;
    member->epoch = epoch;
    TAILQ_FOREACH_REVERSE(before, &epochs->members, epoch_list, link)
    {
        if (before->epoch <= epoch) {
            TAILQ_INSERT_AFTER(&epochs->members, before, member, link);
            return;
        }
    }
    TAILQ_INSERT_HEAD(&epochs->members, member, link);
}

void epoch_leave(struct epoch_member *member)
{
    struct epochs *epochs = member->inside;

    if (!epochs)
        return;
    bool oldest = member == TAILQ_FIRST(&epochs->members);

    member->inside = NULL;
    TAILQ_REMOVE(&epochs->members, member, link);
    if (oldest)
        waitq_wake(&epochs->oldest_left, 0);
}

bool epoch_passed(const struct epochs *epochs, uint64_t stamp)
{
    const struct epoch_member *oldest = TAILQ_FIRST(&epochs->members);

    return !oldest || oldest->epoch >= stamp;
}
