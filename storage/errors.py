"""What can go wrong between Reelmill and its store.

InputError      the person who called can mend it: one line, what and what to do
├─ RootError    the root is missing, unwritable or from another version
│  └─ NewerSchema  a later Reelmill wrote it: it is sound, and not ours to judge or to replace
StoreError      the store did not keep its promise
├─ Conflict     another writer published other bytes under the same name
└─ Damaged      bytes at rest differ from their digest; names the object
Incomplete      a stage ended with items neither committed nor quarantined; names them
BudgetExceeded  more items were quarantined than the failure budget allows
"""


class InputError(ValueError):
    pass


class RootError(InputError):
    pass


class NewerSchema(RootError):
    pass


class StoreError(RuntimeError):
    pass


class Conflict(StoreError):
    pass


class Damaged(StoreError):
    pass


class Incomplete(RuntimeError):
    pass


class BudgetExceeded(RuntimeError):
    pass
