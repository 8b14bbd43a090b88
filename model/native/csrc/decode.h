// Decode steps in a row: each chooses a token for every sequence, and the next computes it, with no word to Python in
// between. What a step costs beside the model is paid once for all of them.
#pragma once
#include "abi.h"
#include "session.h"

// At least one pass, and another while all is finite, no sequence has ended, `most_passes` are not done, `seconds` have
// not gone by and nothing has come to the watched descriptor. Throws std::invalid_argument, with nothing written, for spans and tables that do not
// allow so many passes, and what Session::step and choose_tokens throw.
void decode(Session& session, DecodeWork& work);
