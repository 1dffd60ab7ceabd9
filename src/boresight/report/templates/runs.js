"use strict";
// The page of several runs: its tables are in the template, and its charts are those of a run page.

drawCurves(pageData());
